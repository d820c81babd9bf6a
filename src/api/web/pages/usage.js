// The page of the ledger: sums of a period, a bar for each day, and a table by what is chosen.

import { $, el, svg } from './dom.js';
import { recall, store } from './settings.js';
import { usage } from './stream.js';

const CHOICES = ['days', 'by', 'measure'];
const DAY_MS = 24 * 60 * 60 * 1000;
const whole = new Intl.NumberFormat('en');
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });

const MEASURES = {
  cost: { of: (row) => row.cost_nano_usd, text: dollars },
  tokens: { of: (row) => row.prompt_tokens + row.completion_tokens, text: (count) => `${short.format(count)} tokens` },
  attempts: { of: (row) => row.attempts, text: (count) => `${whole.format(count)} attempts` },
};

const COLUMNS = [
  ['Attempts', (row) => whole.format(row.attempts)],
  ['Prompt tokens', (row) => whole.format(row.prompt_tokens)],
  ['of them cached', (row) => whole.format(row.cached_tokens)],
  ['Answer tokens', (row) => whole.format(row.completion_tokens)],
  ['Mean time', (row) => (row.attempts ? `${short.format(row.latency_ms / row.attempts / 1000)} s` : '')],
  ['Cost', cost],
  ['Without a price', (row) => (row.unpriced_attempts ? whole.format(row.unpriced_attempts) : '')],
];

// Of several answers only the newest question's is shown.
let asked = 0;
let shown = null;

// Billionths of a dollar, to the cent or, where that is little, to four digits.
function dollars(nano) {
  const usd = nano / 1e9;
  const digits = usd >= 1 || usd === 0
    ? { minimumFractionDigits: 2, maximumFractionDigits: 2 }
    : { maximumSignificantDigits: 4 };
  return `$${new Intl.NumberFormat('en', digits).format(usd)}`;
}

// What nobody knows the price of has not cost nothing.
function cost(row) {
  return row.attempts > 0 && row.unpriced_attempts === row.attempts ? 'unknown' : dollars(row.cost_nano_usd);
}

const dayOf = (at) => new Date(at).toISOString().slice(0, 10);
const firstDay = () => dayOf(Date.now() - (Number($('days').value) - 1) * DAY_MS);
const key = () => recall('key') || '';

function added(rows) {
  const sum = {};
  for (const row of rows) {
    for (const [name, value] of Object.entries(row)) {
      if (typeof value === 'number') sum[name] = (sum[name] || 0) + value;
    }
  }
  return sum;
}

async function load() {
  const turn = ++asked;
  const from = firstDay();
  const by = $('by').value;
  $('csv').disabled = true;
  try {
    const [days, rows] = await Promise.all([usage({ by: 'day', from }, key()), usage({ by, from }, key())]);
    if (turn !== asked) return;
    shown = { from, by, days, rows };
    problem('');
    $('access').hidden = !recall('key');
    $('csv').disabled = false;
    show();
  } catch (error) {
    if (turn !== asked) return;
    shown = null;
    clear();
    problem(error.message || 'the server cannot be reached');
    if (error.status === 401 || error.status === 403) {
      $('access').hidden = false;
      $('key').focus();
    }
  }
}

function problem(text) {
  $('problem').textContent = text;
  $('problem').hidden = !text;
}

function clear() {
  for (const id of ['totals', 'bars', 'caption']) $(id).replaceChildren();
  $('rows').tHead.replaceChildren();
  $('rows').tBodies[0].replaceChildren();
}

function show() {
  if (!shown) return;
  const sum = { attempts: 0, prompt_tokens: 0, cached_tokens: 0, completion_tokens: 0, cost_nano_usd: 0, ...added(shown.days) };
  totals(sum);
  bars();
  table(sum);
  $('status').textContent = `${whole.format(sum.attempts)} attempts since ${shown.from}, cost ${cost(sum)}`;
}

function totals(sum) {
  const tile = (name, value, more) => el('dl', {}, el('dt', {}, name), el('dd', {}, value, el('small', {}, more || '\u00a0')));
  const cached = sum.prompt_tokens ? Math.round((100 * sum.cached_tokens) / sum.prompt_tokens) : 0;
  const unpriced = sum.unpriced_attempts ? `${whole.format(sum.unpriced_attempts)} attempts without a known price` : '';
  $('totals').replaceChildren(
    tile('Cost', cost(sum), unpriced),
    tile('Attempts', whole.format(sum.attempts)),
    tile('Prompt tokens', short.format(sum.prompt_tokens), `${cached} % from a cache`),
    tile('Answer tokens', short.format(sum.completion_tokens)),
  );
}

// Days of which there is nothing have their place, too.
function bars() {
  const { of, text } = MEASURES[$('measure').value];
  const known = new Map(shown.days.map((row) => [row.day, of(row)]));
  const count = Number($('days').value);
  const days = Array.from({ length: count }, (_, at) => dayOf(Date.parse(shown.from) + at * DAY_MS));
  const most = Math.max(...days.map((day) => known.get(day) || 0));
  const bar = (day, at) => {
    const value = known.get(day) || 0;
    const height = most ? (100 * value) / most : 0;
    return svg('g', {},
      svg('title', {}, `${day}: ${text(value)}`),
      svg('rect', { class: 'ground', x: at + 0.08, y: 0, width: 0.84, height: 100 }),
      svg('rect', { x: at + 0.08, y: 100 - height, width: 0.84, height }));
  };
  const label = `${$('measure').value} of each day since ${shown.from}, at most ${text(most)}`;
  const frame = { viewBox: `0 0 ${count} 100`, preserveAspectRatio: 'none', role: 'img', 'aria-label': label };
  $('bars').replaceChildren(svg('svg', frame, ...days.map(bar)));
  $('caption').replaceChildren(
    el('span', {}, days[0]), el('span', {}, `most: ${text(most)} a day`), el('span', {}, days[days.length - 1]));
}

function table(sum) {
  const { by, rows } = shown;
  const head = [by, ...COLUMNS.map(([name]) => name)].map((name) => el('th', { scope: 'col' }, name));
  $('rows').tHead.replaceChildren(el('tr', {}, ...head));
  const ordered = [...rows].sort((a, b) => (by === 'day'
    ? b.day.localeCompare(a.day)
    : b.cost_nano_usd - a.cost_nano_usd || b.attempts - a.attempts));
  const cells = (name, row) => [el('td', {}, name), ...COLUMNS.map(([, of]) => el('td', {}, of(row)))];
  const lines = ordered.map((row) => el('tr', {}, ...cells(row[by] || '(none)', row)));
  if (lines.length === 0) {
    lines.push(el('tr', {}, el('td', { class: 'none', colSpan: COLUMNS.length + 1 }, 'Nothing was asked in this time.')));
  } else if (lines.length > 1) {
    lines.push(el('tr', { class: 'sum' }, ...cells('all', { latency_ms: 0, ...sum })));
  }
  $('rows').tBodies[0].replaceChildren(...lines);
}

async function saveCsv() {
  const by = $('by').value;
  try {
    const text = await usage({ by: by === 'day' ? 'day' : `day,${by}`, from: firstDay(), format: 'csv' }, key());
    const address = URL.createObjectURL(new Blob([text], { type: 'text/csv' }));
    el('a', { href: address, download: `usage-${by}-since-${firstDay()}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  } catch (error) {
    problem(error.message || 'the server cannot be reached');
  }
}

for (const name of CHOICES) {
  $(name).value = recall(`usage.${name}`) || $(name).value;
  $(name).addEventListener('change', () => {
    store(`usage.${name}`, $(name).value);
    if (name === 'measure') show();
    else load();
  });
}
$('choice').addEventListener('submit', (event) => event.preventDefault());
$('access').addEventListener('submit', (event) => {
  event.preventDefault();
  store('key', $('key').value.trim());
  load();
});
$('csv').addEventListener('click', saveCsv);
$('key').value = key();
load();
