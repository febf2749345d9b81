// Checks that the page's tests run inside it.

// Visible text that leaves the window, its drawing, or a box that hides what overflows.
function cutText() {
  const page = document.documentElement.clientWidth;
  const cut = [];
  const name = (element) => `${element.tagName} ${element.getAttribute("class")}: ${element.textContent.slice(0, 40)}`;
  for (const element of document.body.querySelectorAll("*")) {
    if (["SCRIPT", "STYLE", "OPTION", "TITLE"].includes(element.tagName)) continue;
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) continue;
    const box = element.getBoundingClientRect();
    if (!box.width || !box.height) continue;
    const frame = element.closest("svg")?.getBoundingClientRect();
    if (frame) {
      const sideways = box.left < frame.left - 1 || box.right > frame.right + 1;
      if (sideways || box.top < frame.top - 1 || box.bottom > frame.bottom + 1) cut.push(name(element));
    } else if (!element.closest(".scroll") && (box.left < -1 || box.right > page + 1)) cut.push(name(element));
    const hides = getComputedStyle(element).overflowX === "hidden";
    if (hides && element.scrollWidth > element.clientWidth + 1) cut.push(`hidden ${name(element)}`);
  }
  const boards = [...document.querySelectorAll(".board")];
  return {
    cut,
    overflow: document.documentElement.scrollWidth - page,
    board: Math.max(...boards.map((board) => board.scrollWidth - board.parentElement.clientWidth)),
  };
}

// Words of the leaderboards' labels that stand on more than one line.
function brokenWords() {
  const broken = [];
  for (const label of document.querySelectorAll(".board tbody th")) {
    const text = label.lastChild;
    for (const { 0: word, index } of text.data.matchAll(/\S+/g)) {
      const range = document.createRange();
      range.setStart(text, index);
      range.setEnd(text, index + word.length);
      if (range.getClientRects().length > 1) broken.push(word);
    }
  }
  return broken;
}

// WCAG contrast ratio of every pair of text and background colours in use.
function contrasts() {
  const channel = (value) => (value <= 10 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = (colour) => {
    const [r, g, b] = colour.match(/[\d.]+/g).map((value) => channel(Number(value)));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = {};
  const wanted = "p, th, td, h1, h2, h3, li, small, figcaption, .strip span, .text span, .scale span, .tag, button";
  for (const element of document.body.querySelectorAll(wanted)) {
    if (!element.textContent.trim() || !element.getBoundingClientRect().width) continue;
    let behind = element;
    while (behind && getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
    const pair = [getComputedStyle(element).color, getComputedStyle(behind ?? document.body).backgroundColor];
    const [dark, light] = pair.map(luminance).sort((a, b) => a - b);
    found[`${element.tagName} ${element.className}: ${pair.join(" on ")}`] = (light + 0.05) / (dark + 0.05);
  }
  return found;
}

// Of every group: its methods, and what each chart that is shown consists of.
function charts() {
  return [...document.querySelectorAll(".group")].map((group) => ({
    methods: group.querySelectorAll("table[data-board] tbody tr").length,
    charts: Object.fromEntries(
      [...group.querySelectorAll(".chart")].map((chart) => {
        const svg = chart.querySelector("div:not([hidden]) svg");
        const { width, height } = svg.getBoundingClientRect();
        const count = (what) => svg.querySelectorAll(what).length;
        return [chart.dataset.chart, { width, height, marks: count(".mark"), bars: count("rect"), curves: count(".curve") }];
      }),
    ),
  }));
}
