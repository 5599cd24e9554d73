/** A progress bar on stderr, where someone looks: on a terminal. Elsewhere nothing. */
import { formatSize } from '../base/size.ts';

export interface Progress {
  update(doneBytes: number, totalBytes: number): void;
  stop(): void;
}

const SILENT: Progress = { update: () => undefined, stop: () => undefined };

/** `wanted`: true and false settle it; undefined asks whether stderr is a terminal. */
export const startProgress = async (label: string, wanted?: boolean): Promise<Progress> => {
  if (!(wanted ?? process.stderr.isTTY === true)) return SILENT;
  const { SingleBar } = await import('cli-progress');
  const bar = new SingleBar({
    format: `${label} {bar} {percentage} % {done} of {all}`,
    barCompleteChar: '=',
    barIncompleteChar: ' ',
    hideCursor: true,
    noTTYOutput: !process.stderr.isTTY,
    stream: process.stderr,
  });
  let started = false;
  return {
    update: (doneBytes, totalBytes) => {
      const texts = { done: formatSize(doneBytes), all: formatSize(totalBytes) };
      if (started) bar.update(doneBytes, texts);
      else bar.start(totalBytes, doneBytes, texts);
      started = true;
    },
    stop: () => bar.stop(),
  };
};

/** Runs work that SIGINT and SIGTERM end: its signal is aborted, and it cleans up. */
export const interruptible = async <T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> => {
  const controller = new AbortController();
  const abort = (name: NodeJS.Signals): void => controller.abort(new Error(`ended by ${name}`));
  process.once('SIGINT', abort);
  process.once('SIGTERM', abort);
  try {
    return await work(controller.signal);
  } finally {
    process.off('SIGINT', abort);
    process.off('SIGTERM', abort);
  }
};
