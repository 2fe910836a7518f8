"use strict";
// What the page does: draws the charts, lists the rows, finds, opens and saves them.
// Whatever rows say is put in as text (textContent), never as HTML.
(() => {
  const found = (selector) => document.querySelector(selector);
  const data = JSON.parse(found("#data").textContent);
  const columns = data.columns;
  const STATES = ["kept", "rejected", "dropped"];
  const SAID = ["kept", "not kept", "dropped"];
  const narrow = matchMedia("(max-width: 760px)").matches;

  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };

  // Rows: one object for each, of what stands in columns.
  const name_of = (coded, at) => (coded.of[at] < 0 ? null : coded.names[coded.of[at]]);
  const rows = columns.id.map((id, at) => ({
    at,
    id,
    decision: columns.decision[at],
    rank: columns.rank[at],
    score: columns.score[at],
    loss: columns.loss[at],
    tokens: columns.tokens[at],
    usable: columns.usable[at],
    border: columns.border[at],
    source: name_of(columns.source, at),
    language: name_of(columns.language, at),
    group: name_of(columns.group, at),
    reason: columns.reason[at],
    prompt: columns.prompt[at],
    answer: columns.answer[at],
  }));
  const place = new Map(rows.map((row) => [row.id, row.at]));

  // Charts.
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const tip = element("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const show_tip = (_, event, item, value) => {
    tip.hidden = value === null || value === undefined || value === "";
    if (tip.hidden) return;
    const lines = typeof value === "object" ? Object.entries(value) : [["", value]];
    tip.replaceChildren(
      ...lines.map(([name, what]) => {
        const line = element("div");
        if (name) line.append(element("b", name));
        line.append(String(what));
        return line;
      }),
    );
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8))}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 8))}px`;
  };
  const theme = () => {
    const line = style("line");
    const muted = style("muted");
    return {
      background: null,
      font: "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif",
      view: { stroke: null },
      axis: {
        labelColor: muted, titleColor: muted, titleFontWeight: 500, titleFontSize: 12, labelFontSize: 11,
        gridColor: line, domainColor: line, tickColor: line, gridOpacity: 0.7, titlePadding: 8,
      },
      axisX: { grid: false },
      range: { category: ["#1d6fd8", "#d9822b", "#12805c", "#a64ac9", "#c23b4f", "#6b7688", "#00a3a3", "#8a6d1d"] },
    };
  };
  let views = [];
  const draw = async () => {
    views.forEach((view) => view.finalize());
    views = [];
    const params = data.colours.map((name) => ({ name, value: style(name) }));
    const config = theme();
    for (const [key, specs] of Object.entries(data.charts)) {
      const places = document.querySelectorAll(`#chart-${key} .chart`);
      for (const [n, spec] of specs.entries()) {
        const drawn = await vegaEmbed(places[n], { ...spec, params, config }, {
          ast: true, actions: false, defaultStyle: false, renderer: "svg", tooltip: show_tip, mode: "vega-lite",
          // It warns of each chart that says its own height.
          logLevel: vega.Error,
        });
        drawn.view.addEventListener("click", (_, item) => {
          const id = item && item.datum && item.datum.id;
          if (place.has(id)) open_row(place.get(id));
        });
        views.push(drawn);
      }
    }
    document.documentElement.dataset.drawn = views.length;
  };

  // The table.
  const clip = (cell) => {
    const value = cell.getValue();
    return value === null || value === undefined ? element("span", "–", "none") : element("div", value, "clip");
  };
  const figure = (digits) => (cell) => {
    const value = cell.getValue();
    if (value === null || value === undefined) return element("span", "–", "none");
    return element("span", digits === undefined ? value.toLocaleString("en") : value.toFixed(digits));
  };
  const state = (cell) => element("span", SAID[cell.getValue()], `state ${STATES[cell.getValue()]}`);
  const has = (coded) => coded.names.length > 1;
  const number = { hozAlign: "right", headerHozAlign: "right", sorter: "number", sorterParams: { alignEmptyValues: "bottom" } };
  const text = { formatter: clip, sorter: "string", sorterParams: { alignEmptyValues: "bottom" } };
  const all_columns = [
    { title: "Decision", field: "decision", formatter: state, sorter: "number", width: narrow ? 84 : 104, headerSort: !narrow },
    { title: "Rank", field: "rank", formatter: figure(), ...number, width: 84 },
    { title: "Score", field: "score", formatter: figure(2), ...number, width: 88 },
    { title: "Loss", field: "loss", formatter: figure(2), ...number, width: 80 },
    { title: "Tokens", field: "tokens", formatter: figure(), ...number, width: 98 },
    { title: "Prompt", field: "prompt", ...text, widthGrow: 3, minWidth: narrow ? 110 : 130 },
    { title: "Answer", field: "answer", ...text, widthGrow: 4, minWidth: narrow ? 110 : 140 },
    { title: "Why", field: "reason", ...text, widthGrow: 3, minWidth: 130 },
    { title: "Source", field: "source", ...text, width: 110, visible: has(columns.source) },
    { title: "Row", field: "id", ...text, width: 120 },
  ];
  const shown_narrow = ["decision", "prompt", "answer"];
  const table = new Tabulator("#table", {
    data: rows,
    columns: narrow ? all_columns.filter((column) => shown_narrow.includes(column.field)) : all_columns,
    index: "at",
    height: narrow ? "70vh" : "640px",
    rowHeight: 54,
    layout: "fitColumns",
    selectableRows: false,
    placeholder: "No row fits these filters.",
    columnDefaults: { headerTooltip: false, tooltip: false, resizable: !narrow },
    rowFormatter: (row) => {
      row.getElement().tabIndex = 0;
    },
  });
  table.on("rowClick", (_, row) => open_row(row.getData().at));
  found("#table").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !event.target.classList.contains("tabulator-row")) return;
    const row = table.getRow(event.target);
    if (row) open_row(row.getData().at);
  });

  // Filters.
  const form = found("#filters");
  const segments = form.querySelector(".segments");
  const kinds = [
    ["All", () => true],
    ["Kept", (row) => row.decision === 0],
    ["Not kept", (row) => row.decision === 1],
    ["Borderline", (row) => row.border === 1],
    ["Dropped", (row) => row.decision === 2],
  ].filter(([name, test]) => name === "All" || rows.some(test));
  let kind = 0;
  kinds.forEach(([name, test], at) => {
    const button = element("button", `${name} ${rows.filter(test).length.toLocaleString("en")}`);
    button.type = "button";
    button.dataset.kind = name;
    button.addEventListener("click", () => {
      kind = at;
      filter();
    });
    segments.append(button);
  });
  for (const [name, every] of [["source", "All sources"], ["language", "All languages"], ["group", "All groups"]]) {
    const select = form.elements[name];
    select.closest("label").hidden = !has(columns[name]);
    select.append(new Option(every, ""));
    columns[name].names.forEach((one, at) => select.append(new Option(one, String(at))));
  }
  // What is searched of a row, in lower case: made when it is first asked for.
  let searched = null;
  const search_in = () => {
    searched ??= rows.map((row) => `${row.id}\n${row.prompt ?? ""}\n${row.answer ?? ""}\n${row.reason ?? ""}`.toLowerCase());
    return searched;
  };
  const press = () => [...segments.children].forEach((button, at) => button.setAttribute("aria-pressed", at === kind));
  const filter = () => {
    press();
    const tests = kind ? [kinds[kind][1]] : [];
    for (const name of ["source", "language", "group"]) {
      const wanted = form.elements[name].value;
      if (wanted !== "") tests.push((row) => columns[name].of[row.at] === Number(wanted));
    }
    const words = form.elements.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length) {
      const texts = search_in();
      tests.push((row) => words.every((word) => texts[row.at].includes(word)));
    }
    if (tests.length) table.setFilter((row) => tests.every((test) => test(row)));
    else table.clearFilter();
  };
  const count = () => {
    const n = table.getDataCount("active");
    found("#count").textContent = `${n.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows on screen`;
    for (const button of document.querySelectorAll(".export button")) button.disabled = !n;
  };
  table.on("dataFiltered", () => setTimeout(count));
  let waiting;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 120);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => {
    kind = 0;
    setTimeout(filter);
  });

  // Ids as `--keep FILE` and `--drop FILE` read them: one a line, or as JSON where a line would not do.
  const line_of = (id) => {
    const plain = id !== "" && id === id.trim() && !id.startsWith("{") && !/[\n\r]/.test(id);
    return plain ? id : JSON.stringify({ [data.id_column]: id });
  };
  const save = (name, listed) => {
    const ids = listed.map((row) => line_of(row.id));
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([ids.join("\n"), "\n"], { type: "text/plain" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  // What cannot be selected is refused on a list of rows to keep.
  found("#save-keep").addEventListener("click", () => {
    const active = table.getData("active");
    const listed = active.filter((row) => row.usable);
    const left = active.length - listed.length;
    if (listed.length) save("keep.txt", listed);
    if (left) found("#count").textContent = `${listed.length.toLocaleString("en")} ids saved; ${left.toLocaleString("en")} left out, as these rows cannot be selected`;
  });
  found("#save-drop").addEventListener("click", () => save("drop.txt", table.getData("active")));

  // Reading one row beside the kept row nearest to it.
  const reader = found("#reader");
  let opened = null;
  const fill = (article, title, at) => {
    const head = element("h3");
    head.append(...title);
    article.replaceChildren(head);
    if (at === null) return;
    for (const [name, what] of [["Prompt", rows[at].prompt], ["Answer", rows[at].answer]]) {
      article.append(element("h4", name));
      // The reason is left out where the texts are.
      const missing = rows[at].reason === null ? "This page does not hold the text of this row: gradsift explain RUN ID prints it." : "not known";
      article.append(element("div", what ?? missing, what === null ? "text none" : "text"));
    }
  };
  const open_row = (at) => {
    const row = rows[at];
    opened = at;
    found("#reader-id").replaceChildren(
      element("span", SAID[row.decision], `state ${STATES[row.decision]}`), " · ", element("bdi", row.id),
    );
    found("#reader-reason").textContent = row.reason ?? "";
    const facts = [
      ["rank", row.rank], ["score", row.score], ["loss", row.loss], ["answer tokens", row.tokens],
      ["source", row.source], ["language", row.language], ["about", row.group], ["near the cut", row.border ? "yes" : null],
    ].filter(([, value]) => value !== null && value !== undefined);
    found("#reader-facts").replaceChildren(
      ...facts.map(([name, value]) => {
        const fact = element("div");
        fact.append(element("dt", name), element("dd", String(value)));
        return fact;
      }),
    );
    fill(found("#reader-row"), ["This row"], at);
    const near = columns.nearest[at];
    const cosine = columns.similarity[at];
    const alike = cosine === null ? "" : `, similarity ${cosine.toFixed(2)}`;
    const title = near === null ? ["No kept row is near it"]
      : ["The kept row nearest to it: ", element("bdi", typeof near === "number" ? rows[near].id : near), alike];
    fill(found("#reader-near"), title, typeof near === "number" ? near : null);
    if (!reader.open) reader.showModal();
    reader.scrollTop = 0;
    history.replaceState(null, "", `#row=${encodeURIComponent(row.id)}`);
  };
  const step = (by) => {
    const listed = table.getData("active");
    const now = listed.findIndex((row) => row.at === opened);
    const next = listed[now + by];
    if (next) open_row(next.at);
  };
  found("#previous").addEventListener("click", () => step(-1));
  found("#next").addEventListener("click", () => step(1));
  found("#close").addEventListener("click", () => reader.close());
  reader.addEventListener("click", (event) => {
    if (event.target === reader) reader.close();
  });
  reader.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  reader.addEventListener("close", () => {
    opened = null;
    history.replaceState(null, "", location.pathname + location.search);
  });
  const open_linked = () => {
    const linked = /^#row=(.*)$/.exec(location.hash);
    if (!linked) return;
    let id = linked[1];
    try {
      id = decodeURIComponent(id);
    } catch {
      // As it stands, then.
    }
    if (place.has(id)) open_row(place.get(id));
  };
  addEventListener("hashchange", open_linked);

  // A few rows, before any are looked for.
  const examples = (list, chosen) => {
    list.replaceChildren(
      ...chosen.map(({ at, asked }) => {
        const row = rows[at];
        const button = element("button");
        button.type = "button";
        button.append(
          element("span", asked || row.id, "prompt"),
          element("span", row.answer ?? "", "answer"),
          element("span", row.reason ?? "", "why"),
        );
        button.addEventListener("click", () => open_row(row.at));
        const item = element("li");
        item.append(button);
        return item;
      }),
    );
  };
  examples(found("#examples-kept"), data.examples.kept);
  examples(found("#examples-rejected"), data.examples.rejected);

  table.on("tableBuilt", () => {
    press();
    count();
    document.documentElement.dataset.ready = "rows";
    open_linked();
    // What is there already is shown before the charts are.
    setTimeout(() => draw().catch((error) => console.error(error)));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
})();
