import subprocess
import sys
import textwrap


def test_the_losses_need_torch_alone():
    """Everything that this package depends on besides torch is refused, and it still imports."""
    code = textwrap.dedent("""
        import sys
        import torch  # whatever torch itself needs is here now

        REFUSED = {
            "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "scipy",
            "pyarrow", "pydantic", "yaml", "typer", "rich", "matplotlib", "jinja2", "pandas",
        }
        already = REFUSED & {name.partition(".")[0] for name in sys.modules}
        assert not already, already

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in REFUSED:
                    raise ImportError(f"{name} was imported")

        sys.meta_path.insert(0, Refuse())
        import fortifai
        import fortifai.confidence
        import fortifai.losses

        print(fortifai.truncated_cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1])).item())
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert abs(float(done.stdout) - 1.0986123) < 1e-6  # log 3
