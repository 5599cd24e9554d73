/**
 * Which images of a mount are inactive: another host may use them. By path, so that a file which takes the place of an
 * inactive one is inactive too. What differs from how the mount began is told to whoever outlives this process.
 */
export interface ActivityOptions {
  /** `--inactive`: images are inactive until they are activated. */
  readonly beginsInactive: boolean;
  /** Paths of images that are not as the mount began, as earlier engines have told. */
  readonly changed: readonly string[];
  /** Before anything is done that relies on it. */
  readonly tell: (path: string, differs: boolean) => Promise<void>;
}

export class Activity {
  readonly #options: ActivityOptions;
  readonly #changed: Set<string>;

  constructor(options: ActivityOptions) {
    this.#options = options;
    this.#changed = new Set(options.changed);
  }

  isActive(path: string): boolean {
    return this.#options.beginsInactive === this.#changed.has(path);
  }

  async set(path: string, active: boolean): Promise<void> {
    if (this.isActive(path) === active) return;
    const differs = active === this.#options.beginsInactive;
    if (differs) this.#changed.add(path);
    else this.#changed.delete(path);
    await this.#options.tell(path, differs);
  }
}

/** Of a mount that hands nothing over. */
export const alwaysActive = (): Activity =>
  new Activity({ beginsInactive: false, changed: [], tell: async () => undefined });
