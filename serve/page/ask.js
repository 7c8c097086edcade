// The service: whether it is there, and one question with its reply as it grows.

/** Why there is no reply: what is wrong, what to do, and where (a field of the request) when the service says so. */
export class Problem extends Error {
  constructor({ what, what_to_do: todo, where = '', code = '' }) {
    super(what)
    Object.assign(this, { todo, where, code })
  }
}

const LOST = {
  code: 'no_connection', what: 'The service does not answer', what_to_do: 'see that it still runs (hatch serve), then ask again',
}
const LOADING = {
  code: 'loading', what: 'The service is still loading its model', what_to_do: 'ask again in half a minute',
}

async function reach(path, options) {
  try {
    return await fetch(path, options)
  } catch (error) {
    if (error.name === 'AbortError') throw error
    throw new Problem(LOST)
  }
}

/** What the service says about itself (GET /healthz). Throws Problem when it does not answer or is not ready. */
export async function facts() {
  const ready = await reach('readyz')
  if (ready.status === 503) throw new Problem(LOADING)
  const health = await reach('healthz')
  if (!health.ok) throw new Problem(LOADING)
  return health.json()
}

/**
 * Ask, and return the reply. path: reason or match; body: its fields; onText(text, sample) is called as words come.
 * Throws Problem, or AbortError when `signal` was used.
 */
export async function ask(path, body, { signal, key, onText }) {
  const headers = { 'content-type': 'application/json', accept: 'text/event-stream' }
  if (key) headers.authorization = `Bearer ${key}`
  const response = await reach(path, {
    method: 'POST', headers, signal, body: JSON.stringify({ ...body, stream: true }),
  })
  if (!response.ok) throw await refusal(response)
  for await (const { event, data } of events(response, signal)) {
    if (event === 'text') onText(data.text, data.sample ?? 0)
    if (event === 'reply') return data
    if (event === 'error') throw new Problem(data)
  }
  throw new Problem({ ...LOST, what: 'The connection ended before the reply was whole' })
}

async function refusal(response) {
  const after = response.headers.get('retry-after')
  let body
  try {
    body = await response.json()
  } catch {
    body = {}  // not of the service's own form: a gateway in between, or a service that is starting
  }
  if (!body.what) return new Problem(response.status === 503 || response.status === 404 ? LOADING : {
    what: `The service answers with status ${response.status}`, what_to_do: 'ask again; its log says more',
  })
  return new Problem(after ? { ...body, what_to_do: `ask again in ${after} s` } : body)
}

/** Server-sent events: {event, data}, data read as JSON. */
async function* events(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let held = ''
  for (;;) {
    let piece
    try {
      piece = await reader.read()
    } catch (error) {
      if (signal.aborted) throw error
      throw new Problem({ ...LOST, what: 'The connection was lost' })
    }
    if (piece.done) return
    held = (held + piece.value).replaceAll('\r\n', '\n')
    for (let end; (end = held.indexOf('\n\n')) >= 0; held = held.slice(end + 2)) {
      const fields = held.slice(0, end).split('\n').map((line) => [line.split(':', 1)[0], line.replace(/^[^:]*: ?/, '')])
      const of = (name) => fields.filter(([field]) => field === name).map(([, value]) => value).join('\n')
      if (of('event')) yield { event: of('event'), data: JSON.parse(of('data')) }
    }
  }
}
