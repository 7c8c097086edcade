// Where the cameras are, seen from camera 0: axes x right, y down, z forward, metres. Matrices are rows, 4 x 4.

export const IDENTITY = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]

export function multiply(a, b) {
  return a.map((row) => b[0].map((_, column) => row.reduce((sum, value, k) => sum + value * b[k][column], 0)))
}

/** The inverse of a rigid motion. */
export function inverse(m) {
  const rotation = [0, 1, 2].map((row) => [0, 1, 2].map((column) => m[column][row]))
  const back = rotation.map((row) => -row.reduce((sum, value, k) => sum + value * m[k][3], 0))
  return [...rotation.map((row, k) => [...row, back[k]]), [0, 0, 0, 1]]
}

export const place = (m) => [m[0][3], m[1][3], m[2][3]]

const degrees = (radians) => (radians * 180) / Math.PI

/** A motion as numbers to say: metres right, up and forward, and where the camera then looks, degrees right and up. */
export function described(m) {
  const [right, down, forward] = place(m)
  const [x, y, z] = [m[0][2], m[1][2], m[2][2]]
  return {
    right, up: -down, forward,
    metres: Math.hypot(right, down, forward),
    yaw: degrees(Math.atan2(x, z)),
    pitch: degrees(Math.asin(Math.max(-1, Math.min(1, -y)))),
  }
}

/**
 * The cameras of a reply: [{index, matrix, over}], camera 0 first. A camera is placed by its own pair with 0, else over
 * the nearest camera that is placed (`over` names it). A camera that no pair reaches is left out.
 */
export function placed(poses, count) {
  const step = new Map()
  for (const pose of poses) {
    step.set(`${pose.from}-${pose.to}`, pose.matrix)
    step.set(`${pose.to}-${pose.from}`, inverse(pose.matrix))
  }
  const cameras = new Map([[0, { index: 0, matrix: IDENTITY, over: null }]])
  for (let found = true; found;) {
    found = false
    for (let index = 1; index < count; index++) {
      if (cameras.has(index)) continue
      const over = [...cameras.keys()].sort((a, b) => a - b).find((other) => step.has(`${other}-${index}`))
      if (over === undefined) continue
      const matrix = multiply(cameras.get(over).matrix, step.get(`${over}-${index}`))
      cameras.set(index, { index, matrix, over: over || null })
      found = true
    }
  }
  return [...cameras.values()].sort((a, b) => a.index - b.index)
}

/** The other way round: where camera k would be by going over k - 1, for every k > 1 whose pairs are all there. */
export function detours(poses) {
  const step = new Map(poses.map((pose) => [`${pose.from}-${pose.to}`, pose.matrix]))
  const found = []
  for (const pose of poses) {
    const [first, second] = [step.get(`0-${pose.from}`), pose.matrix]
    if (pose.from === 0 || pose.to !== pose.from + 1 || !first || !step.has(`0-${pose.to}`)) continue
    found.push({ index: pose.to, over: pose.from, matrix: multiply(first, second) })
  }
  return found
}

/** How large the drawing is: the longest way from camera 0, at least half a metre. */
export function reach(...lists) {
  return Math.max(0.5, ...lists.flat().map((camera) => Math.hypot(...place(camera.matrix))))
}
