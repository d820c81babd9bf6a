// The reference: what /openapi.json says, to read, search and print.

import { $, codeBlock, el } from './dom.js';
import * as schemas from './schema.js';

let api = {};

const anchor = (operation) => operation.operationId;

function operations() {
  const all = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method, operation })));
  return api.tags.map((tag) => ({ tag, list: all.filter(({ operation }) => operation.tags[0] === tag.name) })).filter(({ list }) => list.length);
}

// Long paths break after a slash or an underscore.
function breakable(path) {
  return path.split(/(?<=[/_])/).flatMap((part) => [part, el('wbr')]);
}

function methodBadge(method) {
  return el('span', { class: `method ${method}` }, method === 'delete' ? 'del' : method);
}

// A shell command that works as it is.
function curl(path, method, operation, body) {
  const url = `${location.origin}${path.replace('{id}', operation.operationId === 'getModel' ? 'MODEL' : 'RESPONSE_ID').replace('{file}', 'chat.js')}`;
  const lines = [`curl ${method === 'get' || body ? '' : `-X ${method.toUpperCase()} `}${url}`];
  if (operation.security) lines.push('-H "Authorization: Bearer $SCONCE_API_KEY"');
  if (body) {
    lines.push("-H 'Content-Type: application/json'");
    lines.push(`-d '${JSON.stringify(body, null, 2).replaceAll("'", "'\\''")}'`);
  }
  if (body && body.stream) lines[0] = lines[0].replace('curl ', 'curl -N ');
  return lines.join(' \\\n  ');
}

function example(path, method, operation) {
  const content = operation.requestBody && operation.requestBody.content['application/json'];
  const named = content ? Object.entries(content.examples) : [];
  if (operation.requestBody && !content) {
    return codeBlock(`${curl(path, method, operation).replace('-X POST ', '')} \\\n  -F purpose=batch -F file=@requests.jsonl`, 'curl');
  }
  if (!named.length) return codeBlock(curl(path, method, operation), 'curl');
  const place = el('div');
  const buttons = named.map(([name, { value }]) => {
    const show = () => {
      place.replaceChildren(codeBlock(curl(path, method, operation, value), 'curl'));
      buttons.forEach((button) => button.setAttribute('aria-pressed', String(button === own)));
    };
    const own = el('button', { type: 'button', class: 'quiet', 'aria-pressed': 'false', onclick: show }, name);
    return own;
  });
  buttons[0].click();
  return el('div', {}, named.length > 1 ? el('div', { class: 'tabs' }, ...buttons) : null, place);
}

function parameters(operation) {
  if (!operation.parameters) return [];
  const list = operation.parameters.map(({ name, in: place, required, description, schema }) => el('li', {},
    el('span', { class: 'name' }, name),
    el('span', { class: 'kind' }, `${place}, ${schemas.words(schema)}`),
    required ? el('span', { class: 'must' }, 'required') : null,
    el('p', {}, ...schemas.prose(description))));
  return [el('h4', {}, 'Parameters'), el('ul', { class: 'fields' }, ...list)];
}

function response(status, given) {
  const found = given.$ref ? api.components.responses[given.$ref.split('/').pop()] : given;
  const kinds = Object.entries(found.content || {});
  const inner = given.$ref ? [] : kinds.flatMap(([kind, { schema, itemSchema }]) => {
    const item = itemSchema && itemSchema.anyOf[0].properties.data.contentSchema;
    const nodes = schemas.fields(item || schema);
    return nodes.length ? [el('details', {}, el('summary', {}, item ? `events of ${kind}` : kind), ...nodes)] : [];
  });
  return [el('dt', {}, status), el('dd', {}, ...schemas.prose(found.description), ...inner)];
}

function responses(operation) {
  const all = Object.entries(operation.responses);
  const list = (some) => el('dl', { class: 'statuses' }, ...some.flatMap(([status, given]) => response(status, given)));
  const good = all.filter(([status]) => status.startsWith('2'));
  const bad = all.filter(([status]) => !status.startsWith('2'));
  return [
    el('h4', {}, 'Answers'),
    list(good),
    bad.length ? el('details', { class: 'more' }, el('summary', {}, `${bad.length} kinds of refusals`), list(bad)) : null,
  ];
}

// Files come as forms, everything else as JSON.
function bodyOf(operation) {
  const [kind] = operation.requestBody ? Object.values(operation.requestBody.content) : [];
  return kind && kind.schema;
}

function endpoint({ path, method, operation }) {
  const body = bodyOf(operation);
  const title = el('h3', {}, operation.summary);
  return el('section', { class: 'endpoint', id: anchor(operation), 'aria-label': operation.summary },
    title,
    el('div', { class: 'line' }, methodBadge(method), path, operation.security ? el('span', { class: 'lock' }, 'API key, where the server has keys') : null),
    operation.description ? el('p', {}, ...schemas.prose(operation.description)) : null,
    example(path, method, operation),
    ...parameters(operation),
    ...(body ? [el('h4', {}, 'Body'), ...schemas.fields(body)] : []),
    ...responses(operation));
}

// Everything that can be searched of an endpoint, in small letters.
function haystack({ path, method, operation }) {
  const body = bodyOf(operation);
  const name = body && body.$ref && body.$ref.split('/').pop();
  const properties = (name && api.components.schemas[name].properties) || {};
  const words = Object.entries(properties).map(([field, { description }]) => `${field} ${description || ''}`);
  return [method, path, operation.summary, operation.description || '', operation.operationId, ...words].join(' ').toLowerCase();
}

function draw() {
  const families = operations();
  const entries = [];
  $('page-index').replaceChildren(...families.map(({ tag, list }) => {
    const links = list.map((one) => {
      const link = el('a', { href: `#${anchor(one.operation)}` }, methodBadge(one.method), el('span', {}, ...breakable(one.path)));
      entries.push({ link, text: haystack(one), id: anchor(one.operation) });
      return link;
    });
    return el('div', { class: 'group' }, el('h2', {}, tag.name), ...links);
  }));
  $('content').replaceChildren(
    el('h1', {}, api.info.title, ' ', el('span', { class: 'light' }, api.info.version)),
    el('p', {}, api.info.summary),
    el('p', { class: 'light' }, ...schemas.prose(api.info.description)),
    ...families.flatMap(({ tag, list }) => {
      const sections = list.map(endpoint);
      const heading = el('h2', { class: 'family' }, tag.name);
      return [el('div', { class: 'group' }, heading, el('p', {}, ...schemas.prose(tag.description)), ...sections)];
    }));
  return entries;
}

// Hides what does not have every word of the search.
function search(entries) {
  const wanted = $('search').value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const { link, text, id } of entries) {
    const fits = wanted.every((word) => text.includes(word));
    link.hidden = !fits;
    $(id).hidden = !fits;
    count += fits;
  }
  for (const group of document.querySelectorAll('.group')) {
    group.hidden = [...group.querySelectorAll('a[href^="#"], .endpoint')].every((node) => node.hidden);
  }
  $('count').textContent = wanted.length ? `${count} of ${entries.length} endpoints` : '';
}

function highlight(entries) {
  const watcher = new IntersectionObserver((seen) => {
    const entered = seen.find(({ isIntersecting }) => isIntersecting);
    if (!entered) return;
    entries.forEach(({ link, id }) => link.toggleAttribute('aria-current', id === entered.target.id));
  }, { rootMargin: '-80px 0px -70% 0px' });
  entries.forEach(({ id }) => watcher.observe($(id)));
}

async function begin() {
  const answer = await fetch('/openapi.json');
  if (!answer.ok) throw new Error(`/openapi.json answered ${answer.status}`);
  api = await answer.json();
  schemas.use(api);
  const entries = draw();
  $('search').addEventListener('input', () => search(entries));
  document.addEventListener('keydown', (event) => {
    const typing = document.activeElement instanceof HTMLInputElement;
    if (event.key === '/' && !typing) { event.preventDefault(); $('search').focus(); }
    if (event.key === 'Escape' && typing) { $('search').value = ''; search(entries); $('search').blur(); }
  });
  // Paper cannot be unfolded.
  window.addEventListener('beforeprint', () => document.querySelectorAll('details').forEach((one) => { one.open = true; }));
  highlight(entries);
  if (location.hash) $(location.hash.slice(1))?.scrollIntoView();
}

begin().catch((error) => $('content').replaceChildren(el('p', { role: 'alert' }, `The document could not be read: ${error.message}.`)));
