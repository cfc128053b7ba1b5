from fortifai.lab.seeds import derive


def test_no_two_steps_share_a_seed():
    steps = [("fit",), *(("regenerate", k) for k in range(20)), ("evaluate",), ("draw", 0)]
    seeds = [derive(root, g, *s) for root in range(20) for g in range(20) for s in steps]
    # 9,200 random 32-bit numbers coincide somewhere with probability 1 %; these do not
    assert len(set(seeds)) == len(seeds)


def test_a_known_value_so_that_old_runs_stay_repeatable():
    # first 4 bytes of SHA-256 of "int:7\x1fint:3\x1fstr:fit"
    import hashlib

    expected = int(hashlib.sha256(b"int:7\x1fint:3\x1fstr:fit").hexdigest()[:8], 16)
    assert derive(7, 3, "fit") == expected


def test_types_are_told_apart():
    assert derive(0, 1, "1") != derive(0, "1", 1)
    assert derive(0, 11) != derive(0, 1, 1)
