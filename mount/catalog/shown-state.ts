/**
 * What kernels were told of an image under its node. One with a writeback cache believes no other size of a node afterwards,
 * so an image that breaks, or is mended, or that has other content on its server, has to become another node.
 */
export class ShownState {
  /** Null for nothing yet. */
  #isBroken: boolean | null = null;
  #isSuperseded = false;

  /** Whether another node is to take its place. */
  get isSuperseded(): boolean {
    return this.#isSuperseded;
  }

  /** Whether kernels were told that it cannot be opened. */
  get isBroken(): boolean {
    return this.#isBroken === true;
  }

  /** What kernels were shown is not true any more, whether it can be opened or not. */
  supersede(): void {
    this.#isSuperseded = true;
  }

  /** Kernels are told now; what they were told first holds. */
  tell({ broken }: { readonly broken: boolean }): void {
    this.#isBroken ??= broken;
  }

  /** Whether kernels were told nothing else yet. */
  canBecome({ broken }: { readonly broken: boolean }): boolean {
    if (this.#isSuperseded) return false;
    return this.#isBroken === null || this.#isBroken === broken;
  }
}
