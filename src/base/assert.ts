/**
 * Assertions are for bugs of this program alone. Input of a guest, an image, a socket or the command
 * line never reaches one: it gets a `BlockError`.
 */
export class AssertionFailed extends Error {
  override readonly name = 'AssertionFailed';
}

export function assert(condition: boolean, claim: string): asserts condition {
  if (!condition) throw new AssertionFailed(`this cannot be: not (${claim})`);
}

/** For values that are there by construction, where the type cannot say so. */
export function present<T>(value: T | null | undefined, claim: string): T {
  if (value === null || value === undefined) throw new AssertionFailed(`missing: ${claim}`);
  return value;
}
