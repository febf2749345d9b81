"use strict";
(() => {
  const PAGE = 20;

  // Sorting: numbers by data-value, empty cells last whatever the direction.
  function compare(a, b, direction) {
    if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1;
    const [x, y] = [Number(a), Number(b)];
    const order = Number.isNaN(x) || Number.isNaN(y) ? String(a).localeCompare(String(b)) : x - y;
    return direction === "ascending" ? order : -order;
  }

  function turn(th) {
    const direction = th.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
    for (const other of th.parentElement.children) other.setAttribute("aria-sort", "none");
    th.setAttribute("aria-sort", direction);
    return direction;
  }

  for (const table of document.querySelectorAll("table[data-board]")) {
    table.tHead.addEventListener("click", (event) => {
      const th = event.target.closest("th");
      if (!th) return;
      const direction = turn(th);
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => compare(a.cells[th.cellIndex].dataset.value, b.cells[th.cellIndex].dataset.value, direction));
      table.tBodies[0].append(...rows);
    });
  }

  for (const select of document.querySelectorAll("select[data-charts]")) {
    const group = document.getElementById(select.dataset.charts);
    const apply = () => {
      for (const part of group.querySelectorAll("div[data-subtask]")) part.hidden = part.dataset.subtask !== select.value;
    };
    select.addEventListener("change", apply);
    apply(); // a reloaded page keeps its choice
  }

  // Small numbers are packed as one character each, larger ones as ~number~.
  function unpack(text) {
    const values = [];
    for (let i = 0; i < text.length; i++) {
      if (text[i] === "~") {
        const end = text.indexOf("~", i + 1);
        values.push(Number(text.slice(i + 1, end)));
        i = end;
      } else values.push(parseInt(text[i], 36));
    }
    return values;
  }

  function element(tag, kind, text) {
    const node = document.createElement(tag);
    if (kind) node.className = kind;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  const shade = (emitted) => `s${Math.min(emitted, 7)}`;
  const hint = (emitted, index) => `step ${index + 1}: ${emitted} token${emitted === 1 ? "" : "s"}`;

  // Prefill emits the first token; every later token belongs to the step that emitted it.
  function coloured(text, lengths, steps) {
    const box = element("div", "text");
    let [token, at] = [1, lengths[0] ?? 0];
    box.append(text.slice(0, at));
    steps.forEach((emitted, index) => {
      const start = at;
      for (let i = 0; i < emitted; i++) at += lengths[token++] ?? 0;
      const span = element("span", shade(emitted), text.slice(start, at));
      span.title = hint(emitted, index);
      box.append(span);
    });
    box.append(text.slice(at));
    return box;
  }

  function strip(steps) {
    const box = element("div", "strip");
    steps.forEach((emitted, index) => {
      const span = element("span", shade(emitted), emitted);
      span.title = hint(emitted, index);
      box.append(span);
    });
    return box;
  }

  function reading(data, row) {
    const box = element("div", "reading");
    const prompts = data.questions[row[0]][2];
    if (!row[6]) {
      box.append(element("p", "note", "This answer is not on the page, to keep it small."));
      return box;
    }
    row[6].forEach(([place, packed], turnIndex) => {
      if (prompts[turnIndex]) box.append(element("div", "prompt", prompts[turnIndex]));
      const [text, lengths] = data.texts[place];
      const steps = unpack(packed);
      if (lengths && packed) box.append(coloured(text, unpack(lengths), steps));
      else {
        box.append(element("div", "text", text));
        if (packed) box.append(strip(steps));
      }
    });
    return box;
  }

  const digits = (value, count) => (value === null ? "" : value.toFixed(count));

  for (const box of document.querySelectorAll(".questions")) {
    const data = JSON.parse(document.getElementById(box.id.replace("questions", "data")).textContent);
    const [method, subtask] = ["method", "subtask"].map((name) => box.querySelector(`[data-pick=${name}]`));
    const body = box.querySelector("tbody");
    const more = box.querySelector(".more");
    let shown = PAGE;
    let sort = null;
    data.methods.forEach((label, index) => method.append(new Option(label, index)));
    const names = [...new Set(data.questions.map((question) => question[1]))];
    [["All", ""], ...names.map((name) => [data.titles[name], name])].forEach(([label, value]) => subtask.append(new Option(label, value)));
    const faster = data.methods.findIndex((label) => !label.startsWith("vanilla"));
    method.value = Math.max(faster, 0);

    const cell = (row, column) => {
      const [id, name] = data.questions[row[0]];
      return [id, row[1], row[3], row[5], row[2], row[4], data.titles[name]][column] ?? "";
    };

    function tableRow(row) {
      const [id, name] = data.questions[row[0]];
      const tr = element("tr", "row");
      const first = tr.insertCell();
      const button = element("button", "", String(id));
      button.setAttribute("aria-expanded", "false");
      first.append(button);
      const speedup = row[1] === null ? "" : `${digits(row[1], 2)}×`;
      const texts = [speedup, digits(row[3], 2), row[5].replace("_", " "), digits(row[2], 1), row[4], data.titles[name]];
      for (const text of texts) tr.insertCell().textContent = text;
      if (row[5] === "mismatch") tr.cells[3].className = "bad";
      tr.addEventListener("click", () => {
        const open = tr.nextElementSibling?.classList.contains("answer");
        button.setAttribute("aria-expanded", String(!open));
        if (open) return tr.nextElementSibling.remove();
        const answer = element("tr", "answer");
        const td = answer.insertCell();
        td.colSpan = tr.cells.length;
        td.append(reading(data, row));
        tr.after(answer);
      });
      return tr;
    }

    function draw() {
      let rows = data.rows[method.value].filter((row) => !subtask.value || data.questions[row[0]][1] === subtask.value);
      if (sort) rows = [...rows].sort((a, b) => compare(cell(a, sort.column), cell(b, sort.column), sort.direction));
      body.replaceChildren(...rows.slice(0, shown).map(tableRow));
      more.hidden = rows.length <= shown;
      more.textContent = `Show more (${rows.length - shown} left)`;
    }
    for (const select of [method, subtask]) {
      select.addEventListener("change", () => {
        shown = PAGE;
        draw();
      });
    }
    more.addEventListener("click", () => {
      shown += 4 * PAGE;
      draw();
    });
    box.querySelector("thead").addEventListener("click", (event) => {
      const th = event.target.closest("th");
      if (!th) return;
      sort = { column: th.cellIndex, direction: turn(th) };
      draw();
    });
    draw();
  }
})();
