/** `-r`: how fast the offline commands move data, as `qemu-img` spells it. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Argv } from 'yargs';
import { RateLimit } from '../job/rate-limit.ts';
import { parseSize } from './size.ts';

export const declareRate = <T>(yargs: Argv<T>) =>
  yargs.option('rate', {
    alias: 'r',
    type: 'string',
    requiresArg: true,
    defaultDescription: 'as fast as it goes',
    describe: 'Bytes per second to move at most',
  });

/** Waits until so many bytes may be moved. Errors: the signal's reason. */
export type Pace = (lengthBytes: number) => Promise<void>;

/** Without a rate nobody waits. Errors: UsageError for no size, or a rate of 0. */
export const paceOf = (rate: string | undefined, signal: AbortSignal): Pace => {
  const limit = new RateLimit();
  if (rate !== undefined) limit.bytesPerSecond = parseSize(rate, '--rate');
  return async (lengthBytes) => {
    for (let wait = limit.delayMs(); wait > 0; wait = limit.delayMs())
      await sleep(wait, undefined, { signal });
    limit.use(lengthBytes);
  };
};
