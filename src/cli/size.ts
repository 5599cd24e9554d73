/** Sizes on the command line. */
import { readSize } from '../base/size.ts';
import { UsageError } from './command.ts';

/**
 * `512`, `64k`, `8M`, `10G`, `1T` (powers of 1024) as bytes. `subject`: the option or argument, which the error names.
 * Errors: UsageError.
 */
export const parseSize = (text: string, subject: string): number => {
  const size = readSize(text);
  if ('problem' in size) throw new UsageError(size.problem, subject);
  return size.bytes;
};
