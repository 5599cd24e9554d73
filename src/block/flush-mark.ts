/**
 * Says whether a node has been changed by the engine since it was flushed. While it has not, what guests write is what others than the
 * engine write in place (the data plane), and syncing the file that they write to is all that a flush has left to do where the driver
 * says so (`DriverInstance.flushesFileAlone`).
 *
 * Cleared before a change begins, so before it can be answered; set by a flush during which none was in flight. All of it happens on
 * one thread.
 */
export class FlushMark {
  /** Called when the mark, or what it stands for, may be another. */
  readonly listeners = new Set<() => void>();
  #begun = 0;
  #inFlight = 0;
  #isSet = false;
  #hasFailed = false;

  /** All that the engine has changed was flushed, and nothing is being changed. */
  get isSet(): boolean {
    return this.#isSet;
  }

  /** Some flush has failed: for a file of the host that is for good. */
  get hasFailed(): boolean {
    return this.#hasFailed;
  }

  /** A change begins; `changeEnded` follows, however it ends. */
  changeBegins(): void {
    this.#begun++;
    this.#inFlight++;
    this.#set(false);
  }

  changeEnded(): void {
    this.#inFlight--;
  }

  /** A flush begins. Call what it returns when that has ended: whether it has succeeded. */
  flushBegins(): (succeeded: boolean) => void {
    const begun = this.#inFlight === 0 ? this.#begun : null;
    return (succeeded) => {
      if (!succeeded) this.#hasFailed = true;
      this.#isSet = succeeded && begun === this.#begun;
      // Also when it was set before: the driver may say something else now.
      this.#tell();
    };
  }

  #set(isSet: boolean): void {
    if (this.#isSet === isSet) return;
    this.#isSet = isSet;
    this.#tell();
  }

  #tell(): void {
    for (const listener of this.listeners) listener();
  }
}
