"use strict";
(function () {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const style = () => getComputedStyle(document.documentElement);
  const colour = (name) => style().getPropertyValue("--" + name).trim();
  const figures = read("figures"), names = read("names");
  const hidden = { runs: new Set(), roles: new Set() };
  const coarse = window.matchMedia("(pointer: coarse)").matches;
  const config = { displayModeBar: false, responsive: true, doubleClick: "reset" };

  const whole = (figure) => [0, figure.end * 1.015];

  function layout(figure) {
    const rule = colour("rule"), dim = colour("dim"), ink = colour("ink"), paper = colour("paper");
    const axis = { gridcolor: rule, zerolinecolor: rule, linecolor: rule, tickfont: { color: dim, size: 12 },
      automargin: true, fixedrange: coarse };
    const marks = figure.marks.filter((mark) => !hidden.runs.has(mark.run));
    return {
      margin: { l: 46, r: 12, t: marks.length ? 20 : 8, b: 40 }, showlegend: false, hovermode: "x unified",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: coarse ? false : "zoom",
      font: { family: getComputedStyle(document.body).fontFamily, color: ink, size: 12.5 },
      hoverlabel: { bgcolor: paper, bordercolor: rule, font: { color: ink, size: 12.5 }, namelength: 60, align: "left" },
      xaxis: Object.assign({ title: { text: figure.x, font: { color: dim, size: 12 }, standoff: 6 },
        range: whole(figure), hoverformat: figure.x === "epochs" ? ".2f" : ",d", showgrid: false }, axis),
      yaxis: Object.assign({ type: figure.scale ? "log" : "linear", rangemode: figure.fromZero ? "tozero" : "normal",
        dtick: figure.scale === "log2" ? Math.log10(2) : undefined, tickformat: { log2: ",d", log: ".2~g" }[figure.scale],
        hoverformat: figure.key === "lr" ? ".4g" : figure.scale === "log2" ? ",d" : ".4~f", nticks: 6 }, axis),
      shapes: marks.map((mark) => ({ type: "line", x0: mark.x, x1: mark.x, yref: "paper", y0: 0, y1: 1,
        line: { color: dim, width: 1, dash: "dash" } })),
      annotations: marks.slice(0, 12).map((mark) => ({ x: mark.x, yref: "paper", y: 1, yanchor: "bottom", yshift: -2,
        showarrow: false, text: "↻", hovertext: mark.text, font: { color: dim, size: 14 }, captureevents: true })),
    };
  }

  function traces(figure) {
    return figure.traces.map((trace) => {
      const tint = colour("c" + trace.meta.colour), copy = Object.assign({}, trace);
      copy.line = Object.assign({}, trace.line, { color: tint });
      if (trace.marker) copy.marker = Object.assign({}, trace.marker, { color: tint });
      copy.visible = !hidden.runs.has(trace.meta.run) && !hidden.roles.has(trace.meta.role);
      if (trace.meta.role === "bad") copy.hovertemplate = "%{fullData.name}<extra></extra>";
      else copy.hovertemplate = "%{y}<extra>%{fullData.name}</extra>";
      return copy;
    });
  }

  const plots = figures.map((figure) => document.getElementById("plot-" + figure.key));
  const zoom = { range: null };

  function draw() {
    figures.forEach((figure, place) => {
      const own = layout(figure);
      if (zoom.range) { own.xaxis.range = zoom.range; }
      Plotly.react(plots[place], traces(figure), own, config);
    });
    drawMatrices();
  }

  /* Zooming in one panel moves the others. */
  let isMoving = false;
  function follow(place, event) {
    if (isMoving) return;
    if (!("xaxis.range[0]" in event || "xaxis.range" in event)) return;
    const range = event["xaxis.range"] || [event["xaxis.range[0]"], event["xaxis.range[1]"]];
    const end = whole(figures[place])[1];
    zoom.range = Math.abs(range[0]) < 1e-6 * end && Math.abs(range[1] - end) < 1e-6 * end ? null : range;
    isMoving = true;
    const change = { "xaxis.range": range };
    if (!zoom.range) change["yaxis.autorange"] = true;
    Promise.all(plots.map((plot, other) => other === place ? null : Plotly.relayout(plot, change)))
      .then(() => { isMoving = false; });
  }

  /* Confusion matrices, drawn when they come into view. */
  const matrices = [];
  function matrix(element) {
    const found = JSON.parse(element.parentElement.querySelector("script").textContent), n = found.classes.length;
    const rows = found.classes.map(() => new Float64Array(n)), sums = new Float64Array(n);
    found.counts.forEach(([row, column, images]) => { rows[row][column] += images; sums[row] += images; });
    const used = [...sums.keys()].filter((row) => sums[row] > 0);
    const shares = used.map((row) => Array.from(rows[row], (images) => images ? 100 * images / sums[row] : null));
    const paper = colour("soft"), full = colour("c0"), dim = colour("dim"), ink = colour("ink");
    const mixed = (share) => `color-mix(in srgb, ${full} ${share}%, ${paper})`;
    const probe = document.createElement("i");
    document.body.append(probe);
    const solid = (share) => { probe.style.color = mixed(share); const c = getComputedStyle(probe).color;
      const parts = c.match(/color\(srgb ([\d.]+) ([\d.]+) ([\d.]+)/);
      return parts ? `rgb(${parts.slice(1, 4).map((x) => Math.round(255 * x)).join(",")})` : c; };
    /* Mistakes are rare: their colours rise sooner than in proportion. */
    const scale = [[0, 0], [0.01, 22], [0.05, 40], [0.2, 62], [1, 100]].map(([place, share]) => [place, solid(share)]);
    probe.remove();
    const labels = used.map((row) => found.short[row]);
    const small = n <= 20 ? used.flatMap((row, place) => [...rows[row]].map((images, column) => images ? {
      x: column, y: place, text: images.toLocaleString("en"), showarrow: false,
      font: { size: element.clientWidth / n < 45 ? 8.5 : n > 12 ? 10 : 12, color: images / sums[row] > 0.2 ? colour("paper") : ink } } : null).filter(Boolean)) : [];
    const ticks = (texts) => found.isNamed ? { tickmode: "array", tickvals: texts.map((_, i) => i),
      ticktext: texts } : {};
    const axis = { tickfont: { color: dim, size: n > 25 ? 10 : 12 }, showgrid: false, zeroline: false, automargin: true,
      fixedrange: coarse, title: { font: { color: dim, size: 12 }, standoff: 8 } };
    Plotly.react(element, [{ type: "heatmap", z: shares, zmin: 0, zmax: 100, colorscale: scale, showscale: false,
      xgap: n <= 40 ? 2 : 0, ygap: n <= 40 ? 2 : 0, hoverongaps: false,
      customdata: used.map((row) => Array.from(rows[row], (images, column) => [found.classes[row], found.classes[column], images])),
      hovertemplate: "%{customdata[0]}, taken for %{customdata[1]}<br>%{customdata[2]:,d} images, %{z:.1f} %<extra></extra>" }],
    { margin: { l: 50, r: 6, t: 6, b: 50 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: paper,
      font: { color: ink, family: getComputedStyle(document.body).fontFamily },
      hoverlabel: { bgcolor: colour("paper"), bordercolor: colour("rule"), font: { color: ink } },
      dragmode: coarse ? false : "zoom", annotations: small,
      xaxis: Object.assign({}, axis, ticks(found.short), { title: { text: "taken for", font: axis.title.font, standoff: 8 }, tickangle: n > 6 ? -45 : 0, constrain: "domain" }),
      yaxis: Object.assign({}, axis, ticks(labels), { title: { text: "is", font: axis.title.font, standoff: 8 }, autorange: "reversed" }) },
    config);
  }
  function drawMatrices() { matrices.forEach(matrix); }
  const watcher = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    watcher.unobserve(entry.target);
    matrices.push(entry.target);
    matrix(entry.target);
  }), { rootMargin: "300px" });
  document.querySelectorAll(".matrix").forEach((element) => watcher.observe(element));

  document.querySelectorAll(".legend button").forEach((button) => button.addEventListener("click", () => {
    const isOn = button.getAttribute("aria-pressed") === "false";
    button.setAttribute("aria-pressed", String(isOn));
    const set = button.dataset.run !== undefined ? hidden.runs : hidden.roles;
    const key = button.dataset.run !== undefined ? Number(button.dataset.run) : button.dataset.role;
    if (isOn) set.delete(key); else set.add(key);
    draw();
  }));

  draw();
  plots.forEach((plot, place) => {
    plot.on("plotly_relayout", (event) => follow(place, event));
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  document.documentElement.dataset.drawn = "yes";

  /* While the run goes on the page reads itself again, and stays where the reader is. */
  const seconds = Number(document.documentElement.dataset.reload || 0);
  if (seconds) {
    const key = "mobilenetv3-report:" + location.pathname;
    const store = (value) => { try { sessionStorage.setItem(key, JSON.stringify(value)); } catch (error) { /* no storage */ } };
    const kept = (() => { try { return JSON.parse(sessionStorage.getItem(key)); } catch (error) { return null; } })();
    if ("scrollRestoration" in history) history.scrollRestoration = "manual";
    if (kept) {
      document.querySelectorAll("details").forEach((one, place) => { if (place in kept.open) one.open = kept.open[place]; });
      document.querySelectorAll(".legend button").forEach((one, place) => {
        if (kept.off.includes(place)) one.click(); });
      document.documentElement.style.scrollBehavior = "auto";
      window.scrollTo(0, kept.y);
    }
    let isHeld = false;
    addEventListener("pointerdown", () => { isHeld = true; });
    addEventListener("pointerup", () => { isHeld = false; });
    setInterval(() => {
      if (isHeld || zoom.range || document.hidden) return;
      store({ y: scrollY, open: [...document.querySelectorAll("details")].map((one) => one.open),
        off: [...document.querySelectorAll(".legend button")].map((one, place) => one.getAttribute("aria-pressed") === "false" ? place : -1) });
      location.reload();
    }, seconds * 1000);
  }
})();
