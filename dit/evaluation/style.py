"""How the report's page looks, on a wide screen and a phone, by day and by night; and how its tables are sorted."""

STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --faint: #666; --line: #ddd; --box: #f5f6f8;
  --best: #d5eddb; --alike: #edf7ef; --warn: #fff3d6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181c; --faint: #a0a4ab; --line: #3a3d44;
  --box: #22252b; --best: #1f5131; --alike: #1c3325; --warn: #4a3a12; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 76rem;
  margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1rem 0 .4rem; font-weight: 600; }
.faint, figcaption { color: var(--faint); font-size: .9rem; }
.warn, .lead { padding: .6rem 1rem; margin: .8rem 0; border-radius: 6px; } .warn { background: var(--warn); }
.lead { background: var(--box); border-left: 4px solid #009e73; } .lead p { margin: .3rem 0; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; } .wide { grid-column: 1 / -1; } .wide img { max-width: min(100%, 62rem); }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; font-size: .875rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: middle; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--faint); vertical-align: bottom; white-space: normal; min-width: 3.5rem; }
thead th[tabindex] { cursor: pointer; }
th[aria-sort=ascending]::after { content: " ↑"; } th[aria-sort=descending]::after { content: " ↓"; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
.lead th:first-child, .lead td:first-child { background: var(--box); }
tfoot th, tfoot th:first-child, tfoot td { background: var(--box); color: var(--faint); font-weight: 400; }
tfoot tr:first-child > * { border-top: 2px solid var(--faint); }
td.best { font-weight: 700; background: var(--best); } td.alike { background: var(--alike); }
td small { color: var(--faint); font-weight: 400; }
.ends { display: inline-flex; flex-direction: column; line-height: 1; vertical-align: middle; font-size: .68rem; }
details { margin: .5rem 0; } summary { cursor: pointer; padding: .2rem 0; } details details { margin-left: 1rem; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .1rem 1rem; font-size: .875rem; }
dl { margin: .4rem 0; } dt { color: var(--faint); } dd { margin: 0; min-width: 0; }
@media (max-width: 40rem) { th, td { padding: .25rem .3rem; } thead th { min-width: 0; } }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin: 0 0 .4rem; } }
pre { background: var(--box); padding: .8rem; overflow: auto; font-size: .8rem; max-height: 30rem; }
"""
SCRIPT = """
for (const table of document.querySelectorAll("table.sort")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const sort = () => {
      const up = head.ariaSort !== "ascending", value = row => row.cells[column].dataset.v;
      const compare = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
      const rows = [...table.tBodies[0].rows].sort((r, s) => {
        const [a, b] = [value(r), value(s)];  // empty ones last, whichever way
        return a === "" || b === "" ? (a === "") - (b === "") : (up ? 1 : -1) * compare(a, b);
      });
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      table.tBodies[0].append(...rows);
    };
    head.tabIndex = 0; head.title = "sort"; head.onclick = sort;
    head.onkeydown = event => { if (event.key === "Enter") sort(); };
  });
}
"""
