/**
 * What a mount needs is begun before its command line is read: three processes that load their modules one after another are
 * most of the time until it is usable. Imports next to nothing.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { withoutService } from './service-variables.ts';

const STDERR = 2;

/** A supervisor's process that waits for its configuration. */
export class SupervisorProcess {
  readonly child: ChildProcess;
  #failure: Error | null = null;

  /** It has a session of its own, and keeps the caller's stderr until it is told of its log. */
  constructor() {
    const program = fileURLToPath(new URL('./supervisor-main.js', import.meta.url));
    this.child = spawn(process.execPath, [program], {
      detached: true,
      stdio: ['ignore', STDERR, STDERR, 'ipc'],
      cwd: '/',
      env: withoutService(process.env),
    });
    this.child.once('error', (error) => {
      this.#failure = error;
    });
  }

  /** Why it could not be started; null when it was. */
  get failure(): Error | null {
    return this.#failure;
  }

  /** Ends it, with its engine: nothing has been mounted. */
  abandon(): void {
    const { pid, exitCode, signalCode } = this.child;
    if (pid === undefined || exitCode !== null || signalCode !== null) return;
    try {
      process.kill(-pid, 'SIGKILL');
    } catch {
      // It has ended by itself.
    }
  }
}

let ahead: SupervisorProcess | null = null;

/** Starts the one that `takeSupervisor` will want; returns what ends it when nobody has. */
export const beginSupervisor = (): { readonly abandonUnused: () => void } => {
  ahead = new SupervisorProcess();
  return { abandonUnused };
};

/** The one that was begun ahead, which is the caller's now, or a new one. */
export const takeSupervisor = (): SupervisorProcess => {
  const taken = ahead ?? new SupervisorProcess();
  ahead = null;
  return taken;
};

const abandonUnused = (): void => {
  ahead?.abandon();
  ahead = null;
};
