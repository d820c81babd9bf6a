// Asks the server: models, usage, and chat completions as a stream.

// An answer of the server that is no success, in its own words.
export class ApiError extends Error {
  constructor(status, message, param, retryAfter) {
    super(message);
    this.status = status;
    this.param = param;
    this.retryAfter = retryAfter;
  }
}

function headers(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function failure(response) {
  let error = {};
  try { error = (await response.json()).error || {}; } catch { /* Not ours: a proxy's page, say. */ }
  const message = error.message || `the server answered ${response.status}`;
  return new ApiError(response.status, message, error.param, response.headers.get('retry-after'));
}

async function got(path, key) {
  const response = await fetch(path, { headers: headers(key) });
  if (!response.ok) throw await failure(response);
  return response;
}

export async function models(key) {
  return (await (await got('/v1/models', key)).json()).data;
}

// Sums of the ledger: rows, or CSV as text where `query.format` says so.
export async function usage(query, key) {
  const response = await got(`/v1/usage?${new URLSearchParams(query)}`, key);
  return query.format === 'csv' ? response.text() : (await response.json()).data;
}

// Calls `onDelta` with {content, reasoning} as they come. Returns {usage, finish} at the end.
export async function chat(body, key, signal, onDelta) {
  const response = await fetch('/v1/chat/completions', {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers(key) },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw await failure(response);
  const result = { usage: null, finish: null };
  for await (const data of events(response.body)) {
    if (data === '[DONE]') break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(response.status, chunk.error.message, chunk.error.param);
    if (chunk.usage) result.usage = chunk.usage;
    const choice = chunk.choices && chunk.choices[0];
    if (!choice) continue;
    if (choice.finish_reason) result.finish = choice.finish_reason;
    const { content, reasoning } = choice.delta;
    if (content || reasoning) onDelta({ content: content || '', reasoning: reasoning || '' });
  }
  return result;
}

// The data of server-sent events.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split('\n\n');
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split('\n').filter((line) => line.startsWith('data:')).map((line) => line.slice(5).trimStart());
        if (data.length) yield data.join('\n');
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
