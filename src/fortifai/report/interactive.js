// What an interactive report adds to the plain page: charts in the place of its line figures, a
// browser of samples in the place of its followed passages, and both their state in the address.
// Texts were written by models: they reach the page as text nodes alone.
(() => {
  "use strict";

  const data = JSON.parse(document.getElementById("data").textContent);
  const INK = "#26262b", SOFT = "#6d6d76", GRID = "#e6e5e2", UNSEEN = "#f0efec";
  const CARDS = 60; // texts shown before "more" is asked for

  /** An element with its properties, attributes (aria-..., in "set") and children. */
  function make(tag, {set = {}, ...properties} = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    for (const [name, value] of Object.entries(set)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function number(value) {
    if (value === null || value === undefined) return "\u2013";
    const size = Math.abs(value);
    const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
    const far = size >= 1e7 || (size > 0 && size < 0.001);
    const text = far
      ? value.toExponential(2).replace("e+", "e")
      : value.toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits});
    return text.replaceAll("-", "\u2212");
  }

  function tick(value) {
    const size = Math.abs(value), far = size >= 1e7 || (size > 0 && size < 1e-4);
    const text = far
      ? value.toExponential().replace("e+", "e")
      : value.toLocaleString("en", {maximumSignificantDigits: 6});
    return text.replaceAll("-", "\u2212");
  }

  /** Round numbers on a logarithmic axis, as many as its decades leave room for. */
  function powers(u, axis, low, high) {
    const decades = Math.log10(high / low);
    const steps = decades > 3 ? [1] : decades > 1.6 ? [1, 3] : decades > 0.6 ? [1, 2, 5]
      : [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8];
    const skip = Math.ceil(decades / 8), found = [];
    for (let k = Math.floor(Math.log10(low)); k <= Math.log10(high); k += 1)
      if (k % skip === 0) found.push(...steps.map((step) => Number(`${step}e${k}`)));
    return found.filter((value) => value >= low && value <= high);
  }

  // --- state: what the address says behind its anchor, such as #figures?off=focal&seeds=on -----

  let anchor = "", state = new URLSearchParams();

  function readAddress() {
    const [before, ...behind] = location.hash.slice(1).split("?");
    anchor = before;
    // a link within the page names an anchor alone, and leaves the state as it is
    if (behind.length || !before) state = new URLSearchParams(behind.join("?"));
  }

  function writeAddress() {
    const told = state.toString();
    history.replaceState(null, "", `#${anchor}${told && `?${told}`}`);
  }

  function set(name, value) {
    if (value === null) state.delete(name);
    else state.set(name, value);
    writeAddress();
    show();
  }

  /** Put `value` among the values of `name`, or take it away. */
  function toggle(name, value) {
    const rest = state.getAll(name).filter((one) => one !== value);
    if (rest.length === state.getAll(name).length) rest.push(value);
    state.delete(name);
    for (const one of rest) state.append(name, one);
    writeAddress();
    show();
  }

  const armCalled = (label) => data.arms.find((arm) => arm.label === label);
  const isOn = (arm) => !state.getAll("off").includes(arm.label);
  const seedsShown = () => state.has("seeds");

  // --- marks: as in the plain figures, so that no arm is told by its colour alone ---------------

  const polygon = (n, turn) =>
    Array.from({length: n}, (_, i) => [
      1.2 * Math.sin(turn + (2 * Math.PI * i) / n),
      -1.2 * Math.cos(turn + (2 * Math.PI * i) / n),
    ]);
  const cross = (turn) =>
    [[-1, -3], [1, -3], [1, -1], [3, -1], [3, 1], [1, 1], [1, 3], [-1, 3], [-1, 1], [-3, 1],
      [-3, -1], [-1, -1]].map(([x, y]) => [
      (x * Math.cos(turn) - y * Math.sin(turn)) / 2.4,
      (x * Math.sin(turn) + y * Math.cos(turn)) / 2.4,
    ]);
  const MARKS = {
    o: polygon(24, 0), s: polygon(4, Math.PI / 4), "^": polygon(3, 0), D: polygon(4, 0),
    v: polygon(3, Math.PI), P: cross(0), X: cross(Math.PI / 4), p: polygon(5, 0),
  };

  function chip(arm) {
    const space = "http://www.w3.org/2000/svg";
    const drawn = document.createElementNS(space, "svg");
    drawn.setAttribute("class", "key");
    drawn.setAttribute("viewBox", "-12 -6 24 12");
    drawn.setAttribute("aria-hidden", "true");
    const line = document.createElementNS(space, "path");
    line.setAttribute("d", "M-12 0H12");
    line.setAttribute("stroke", arm.colour);
    line.setAttribute("stroke-width", "2");
    line.setAttribute("stroke-dasharray", arm.dash.join(" "));
    const mark = document.createElementNS(space, "polygon");
    mark.setAttribute("points", MARKS[arm.mark].map(([x, y]) => `${4 * x},${4 * y}`).join(" "));
    mark.setAttribute("fill", arm.colour);
    drawn.append(line, mark);
    return drawn;
  }

  function marks(arm) {
    return {
      show: (u) => u.data[0].length <= 25, // more would hide the line
      width: 0.7,
      stroke: "#ffffff",
      fill: arm.colour,
      paths: (u, index, from, to) => {
        const path = new Path2D(), size = 3.6 * devicePixelRatio;
        for (let i = from; i <= to; i++) {
          if (u.data[index][i] === null) continue;
          const x = u.valToPos(u.data[0][i], "x", true);
          const y = u.valToPos(u.data[index][i], "y", true);
          MARKS[arm.mark].forEach(([dx, dy], n) =>
            path[n ? "lineTo" : "moveTo"](x + size * dx, y + size * dy));
          path.closePath();
        }
        return {stroke: path, fill: path, clip: null, flags: 3};
      },
    };
  }

  // --- charts -----------------------------------------------------------------------------------

  /** One panel: its head, the lines beside the arms' in words, the chart, and what is hovered. */
  class Chart {
    constructor(panel, id, tall) {
      Object.assign(this, {panel, id, tall});
      this.log = make("button", {
        type: "button", textContent: "log", title: "logarithmic axis",
        onclick: () => toggle("log", id),
      });
      this.told = make("div", {className: "told-here", set: {role: "status"}, hidden: true});
      this.plot = make("div", {className: "plot"});
      const said = panel.curves
        .filter((curve) => curve.level !== null)
        .map(({name, arm, level}) => `${arm ? `${name} (${arm})` : name} ${number(level)}`);
      this.element = make("section", {
        className: "chart", tabIndex: 0, onkeydown: (event) => this.step(event),
        onblur: () => { this.told.hidden = true; },
        set: {"aria-label": `${panel.title}; arrow keys read it generation by generation`},
      }, make("header", {}, make("h4", {textContent: panel.title}), this.log),
      make("p", {className: "unit", textContent: [panel.unit, ...new Set(said)].filter(Boolean).join(" · ")}),
      this.plot, this.told);
      this.columns();
      new ResizeObserver(() => this.resize()).observe(this.plot);
    }

    /** Columns of numbers for uPlot, and beside each what it is. */
    columns() {
      this.values = [this.panel.x];
      this.series = [{}];
      this.owners = [null];
      this.bands = [];
      const add = (values, owner, how) => {
        this.owners.push(owner);
        this.series.push({spanGaps: true, points: {show: false}, ...how});
        return this.values.push(values) - 1;
      };
      for (const curve of this.panel.curves)
        add(curve.y, {arm: armCalled(curve.arm)}, {stroke: curve.colour, width: curve.width, dash: curve.dash});
      this.panel.arms.forEach((line, i) => {
        const arm = data.arms[i];
        if (line.low) {
          const edge = {stroke: "transparent", width: 0};
          const band = [add(line.high, {arm}, edge), add(line.low, {arm}, edge)];
          this.bands.push({series: band, fill: `${arm.colour}22`});
        }
        for (const values of line.seeds ?? [])
          add(values, {arm, seed: true}, {stroke: `${arm.colour}aa`, width: 1});
        add(line.mean, {arm}, {stroke: arm.colour, width: 2, dash: arm.dash, points: marks(arm)});
      });
      const every = this.values.slice(1).flat().filter((value) => value !== null);
      this.positive = every.length > 0 && Math.min(...every) > 0;
      this.log.hidden = !this.positive;
    }

    isLog() {
      return this.positive && this.panel.log !== state.getAll("log").includes(this.id);
    }

    isShown(owner) {
      return owner === null || !owner.arm || (isOn(owner.arm) && (!owner.seed || seedsShown()));
    }

    draw() {
      this.drawn?.destroy();
      const log = this.isLog(), last = this.panel.x.at(-1), margin = Math.max(0.15, last * 0.03);
      this.drawnLog = log;
      const axis = {stroke: SOFT, font: "11px system-ui, sans-serif", ticks: {show: false}};
      this.drawn = new uPlot({
        ...this.size(),
        legend: {show: false},
        series: this.series.map((one, i) => ({...one, show: this.isShown(this.owners[i])})),
        bands: this.bands,
        scales: {
          x: {time: false, range: [-margin, last + margin]},
          y: {distr: log ? 3 : 1, range: (_, low, high) => this.range(low, high, log)},
        },
        axes: [
          {...axis, grid: {show: false}, size: 30, space: 34,
            incrs: [1, 10, 100, 1000, 1e4].flatMap((n) => [n, 2 * n, 5 * n]),
            values: (_, ticks) => ticks.map(tick)},
          {...axis, grid: {stroke: GRID, width: 1}, size: 52, space: 30,
            values: (_, ticks) => ticks.map(tick),
            // uPlot shows no axis of which it finds no increment, which it does of few decades alone
            ...(log && {splits: powers, filter: (_, splits) => splits, incrs: [1e300]})},
        ],
        cursor: {
          y: false, drag: {x: false, y: false}, points: {show: false},
          sync: {key: "generation", scales: ["x", null]},
        },
        hooks: {
          setCursor: [() => this.tell()], drawAxes: [(u) => this.shade(u)], draw: [(u) => this.ring(u)],
        },
      }, this.values, this.plot);
    }

    range(low, high, log) {
      if (this.panel.limits && !log) return this.panel.limits;
      if (low === null) return log ? [1, 10] : [0, 1];
      if (log) {
        const more = (high / low) ** 0.07 * (low === high ? 1.5 : 1);
        return [low / more, high * more];
      }
      const margin = (high - low) * 0.06 || Math.abs(high) * 0.5 || 0.01;
      return [low - margin, high + margin];
    }

    /** Grey where the arms had not yet trained on what is asked. */
    shade(u) {
      if (this.panel.unseen === null) return;
      u.ctx.save();
      u.ctx.fillStyle = UNSEEN;
      u.ctx.globalCompositeOperation = "destination-over";
      const right = Math.min(u.valToPos(this.panel.unseen, "x", true), u.bbox.left + u.bbox.width);
      u.ctx.fillRect(u.bbox.left, u.bbox.top, right - u.bbox.left, u.bbox.height);
      u.ctx.restore();
    }

    /** A ring where an arm falls through the level of failure. */
    ring(u) {
      this.panel.arms.forEach((line, i) => {
        if (!line.failed || !isOn(data.arms[i])) return;
        const [x, y] = [u.valToPos(line.failed[0], "x", true), u.valToPos(line.failed[1], "y", true)];
        u.ctx.beginPath();
        u.ctx.arc(x, y, 4.5 * devicePixelRatio, 0, 2 * Math.PI);
        Object.assign(u.ctx, {
          fillStyle: "#ffffff", strokeStyle: data.arms[i].colour, lineWidth: 1.6 * devicePixelRatio,
        });
        u.ctx.setLineDash([]);
        u.ctx.fill();
        u.ctx.stroke();
      });
    }

    size() {
      return {width: Math.max(200, this.plot.clientWidth), height: this.tall};
    }

    resize() {
      if (this.drawn && this.drawn.width !== this.size().width) this.drawn.setSize(this.size());
    }

    show() {
      this.log.setAttribute("aria-pressed", this.isLog());
      if (!this.drawn || this.drawnLog !== this.isLog()) return this.draw();
      this.drawn.batch(() => this.owners.forEach((owner, i) => {
        if (i && this.series[i] && this.drawn.series[i].show !== this.isShown(owner))
          this.drawn.setSeries(i, {show: this.isShown(owner)});
      }));
    }

    /** Every arm's value where the pointer, or the arrow keys, stand. */
    tell() {
      const u = this.drawn, at = u?.cursor.idx;
      const mine = u && (u.over.matches(":hover") || document.activeElement === this.element);
      this.told.hidden = !mine || at === null || at === undefined;
      if (this.told.hidden) return;
      const rows = this.panel.arms
        .map((line, i) => ({line, arm: data.arms[i]}))
        .filter(({line, arm}) => isOn(arm) && line.mean[at] !== null)
        .sort((a, b) => b.line.mean[at] - a.line.mean[at]);
      this.told.replaceChildren(
        make("b", {textContent: `generation ${this.panel.x[at]}`}),
        ...rows.map(({line, arm}) => make("div", {}, chip(arm), `${arm.label} `,
          make("b", {textContent: number(line.mean[at])}), this.spread(line, arm, at))),
      );
      const left = u.valToPos(this.panel.x[at], "x") + u.over.offsetLeft;
      const room = this.plot.clientWidth - this.told.offsetWidth;
      const beside = left > room / 2 ? left - this.told.offsetWidth - 12 : left + 12;
      this.told.style.left = `${Math.max(0, Math.min(room, beside))}px`;
      this.told.style.top = `${this.plot.offsetTop + 8}px`;
    }

    spread(line, arm, at) {
      if (seedsShown() && line.seeds)
        return ` (${line.seeds.map((one, k) => `seed ${arm.seeds[k]}: ${number(one[at])}`).join(", ")})`;
      const told = line.low && line.low[at] !== line.high[at];
      return told ? ` (${number(line.low[at])} to ${number(line.high[at])})` : "";
    }

    step(event) {
      const way = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      if (!way || event.target !== this.element) return;
      event.preventDefault();
      const u = this.drawn, last = this.panel.x.length - 1;
      const at = Math.max(0, Math.min(last, (u.cursor.idx ?? (way > 0 ? -1 : last + 1)) + way));
      u.setCursor({left: u.valToPos(this.panel.x[at], "x"), top: 10});
    }
  }

  function buildCharts() {
    const charts = [];
    for (const [name, panels] of Object.entries(data.figures)) {
      const figure = document.getElementById(`figure-${name}`);
      const made = panels.map((panel, i) => new Chart(panel, `${name}.${i}`, panels.length > 1 ? 220 : 360));
      figure.querySelector(".plate").after(
        make("div", {className: "charts"}, ...made.map((chart) => chart.element)));
      figure.classList.add("live");
      charts.push(...made);
    }
    return charts;
  }

  // --- switches ---------------------------------------------------------------------------------

  function buildSwitches() {
    const arms = data.arms.map((arm) => make("button",
      {type: "button", className: "arm", onclick: () => toggle("off", arm.label)},
      chip(arm), arm.label));
    const seeds = make("button", {
      type: "button", textContent: "each seed", hidden: data.arms.every((arm) => arm.seeds.length < 2),
      onclick: () => set("seeds", seedsShown() ? null : "on"),
    });
    const reset = make("button", {
      type: "button", className: "reset", textContent: "reset",
      onclick: () => { state = new URLSearchParams(); writeAddress(); show(); },
    });
    document.getElementById("figures").after(make("div", {
      className: "switches", set: {role: "group", "aria-label": "What is shown"},
    }, ...arms, seeds, reset));
    return () => {
      arms.forEach((button, i) => button.setAttribute("aria-pressed", isOn(data.arms[i])));
      seeds.setAttribute("aria-pressed", seedsShown());
      reset.hidden = !state.size;
    };
  }

  // --- the browser of samples -------------------------------------------------------------------

  const unique = (values) => [...new Set(values)].sort((a, b) => a - b);

  function choice(name, label, options, usual) {
    const select = make("select", {
      set: {"aria-label": label},
      onchange: () => set(name, select.value === usual ? null : select.value),
    }, ...options.map(([value, text]) => make("option", {value, textContent: text})));
    return {
      element: make("label", {}, make("span", {textContent: label}), select),
      get value() {
        const told = state.get(name);
        return options.some(([value]) => value === told) ? told : usual;
      },
      show() { select.value = this.value; },
    };
  }

  function entry(name, label, how, before = () => {}) {
    const input = make("input", {
      ...how, set: {"aria-label": label}, oninput: () => { before(); set(name, input.value || null); },
    });
    return {
      element: make("label", {}, make("span", {textContent: label}), input),
      get value() { return state.get(name) ?? ""; },
      show() { if (input.value !== this.value) input.value = this.value; },
    };
  }

  /** A text whose pieces are kept and changed by turns; what is searched for is marked, too. */
  function text(pieces, pattern) {
    const hits = pattern ? [...pieces.join("").matchAll(pattern)].filter((hit) => hit[0]) : [];
    const edges = hits.flatMap((hit) => [hit.index, hit.index + hit[0].length]);
    const paragraph = make("p", {dir: "auto", className: "text"});
    let place = 0;
    pieces.forEach((piece, i) => {
      const cuts = [place, ...edges.filter((edge) => edge > place && edge < place + piece.length),
        place + piece.length];
      const parts = cuts.slice(1).map((cut, k) => {
        const part = piece.slice(cuts[k] - place, cut - place);
        const hit = hits.some((one) => one.index <= cuts[k] && cut <= one.index + one[0].length);
        return hit ? make("mark", {className: "hit", textContent: part}) : part;
      });
      if (i % 2 && piece) paragraph.append(make("mark", {}, ...parts));
      else paragraph.append(...parts);
      place += piece.length;
    });
    return paragraph;
  }

  function buildBrowser() {
    const still = document.querySelector("#passages + .still");
    if (!still) return () => {};
    const every = data.passages.flatMap((place) => place.versions);
    const last = Math.min(...unique(every.map((one) => one.arm)).map((arm) =>
      Math.max(...every.filter((one) => one.arm === arm).map((one) => one.times))));
    const all = ["all", "all"];
    const place = choice("passage", "Passage",
      [...data.passages.map((one, i) => [String(i), one.title]), all], "0");
    const seeds = unique(every.map((one) => one.seed)).map((seed) => [String(seed), String(seed)]);
    const seed = choice("seed", "Seed", [...seeds, all], seeds[0]?.[0] ?? "all");
    const times = unique(every.map((one) => one.times)).map((n) => [String(n), `${n}\u00d7`]);
    const time = choice("times", "Generated", [...times, all], String(last));
    // what is searched for may be anywhere: the search begins in all texts
    const everywhere = () => {
      if (!state.has("find")) for (const name of ["passage", "seed", "times"]) state.set(name, "all");
    };
    const find = entry("find", "Search", {type: "search"}, everywhere);
    const score = choice("score", "Score", data.scores.map((one, i) => [String(i), one]), "0");
    const from = entry("from", "from", {type: "number", step: "any"});
    const to = entry("to", "to", {type: "number", step: "any"});
    const controls = [place, time, seed, find, score, from, to];
    const count = make("p", {className: "small", set: {role: "status"}});
    const list = make("div", {className: "list"});
    const more = make("button", {type: "button", textContent: "more", onclick: () => fill(Infinity)});
    still.after(make("div", {className: "browser"},
      make("p", {}, "The same passage side by side, as each arm wrote it. ",
        make("mark", {textContent: "Marked and underlined"}),
        ": tokens that differ from the real text at the same place."),
      make("div", {className: "controls", set: {role: "search"}},
        ...controls.map((one) => one.element)), count, list, more));
    still.classList.add("replaced");

    const fits = (chosen, value) => chosen.value === "all" || chosen.value === String(value);
    const within = (value) =>
      (from.value === "" || (value !== null && value >= Number(from.value)))
      && (to.value === "" || (value !== null && value <= Number(to.value)));

    function fill(limit) {
      const wanted = find.value.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");
      const pattern = wanted && new RegExp(wanted, "giu");
      const chosen = Number(score.value), groups = [];
      let found = 0, shown = 0;
      data.passages.forEach((one, i) => {
        const versions = one.versions.filter((version) =>
          fits(place, i) && fits(seed, version.seed) && fits(time, version.times)
          && isOn(data.arms[version.arm]) && within(version.scores[chosen])
          && (!pattern || version.pieces.join("").search(pattern) >= 0));
        found += versions.length;
        const kept = versions.slice(0, Math.max(0, limit - shown));
        shown += kept.length;
        if (kept.length) groups.push(group(one, kept, pattern, chosen));
      });
      list.replaceChildren(...groups.flat());
      count.textContent = `${shown === found ? found : `${shown} of ${found}`} of ${every.length} texts`;
      more.hidden = shown === found;
    }

    return () => {
      for (const control of controls) control.show();
      fill(CARDS);
    };
  }

  function group(place, versions, pattern, chosen) {
    const cards = versions.map((version) => {
      const arm = data.arms[version.arm];
      return make("article", {},
        make("h4", {}, chip(arm), arm.label),
        make("p", {className: "small", textContent:
          `generated ${version.times}\u00d7, seed ${version.seed} · `
          + `${data.scores[chosen]} ${number(version.scores[chosen])}`}),
        text(version.pieces, pattern));
    });
    const real = place.real && make("article", {className: "real-text"},
      make("h4", {textContent: "Real text"}), text([place.real], pattern));
    return [make("h3", {textContent: place.title}),
      make("div", {className: "cards"}, ...(real ? [real] : []), ...cards)];
  }

  // --- all of it --------------------------------------------------------------------------------

  readAddress();
  const showSwitches = buildSwitches(), showBrowser = buildBrowser(), charts = buildCharts();

  function show() {
    showSwitches();
    for (const chart of charts) chart.show();
    showBrowser();
  }

  show();
  // charts are lower than the figures that they stand for: the anchor has moved since
  document.getElementById(decodeURIComponent(anchor))?.scrollIntoView({behavior: "instant"});
  addEventListener("hashchange", () => {
    readAddress();
    writeAddress();
    show();
  });
})();
