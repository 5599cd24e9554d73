/** Sizes on the command line and in what it prints. Powers of 1024. */
import { MAX_OFFSET } from '../base/units.ts';
import { UsageError } from './command.ts';

const FACTOR: Readonly<Record<string, number>> = {
  '': 1,
  b: 1,
  k: 1024,
  m: 1024 ** 2,
  g: 1024 ** 3,
  t: 1024 ** 4,
  p: 1024 ** 5,
  e: 1024 ** 6,
};

const SIZE = /^(?<digits>\d+)(?:\.(?<fraction>\d+))?(?<unit>[bkmgtpe]?)$/i;

/**
 * `512`, `64k`, `8M`, `10G`, `1T`, `1.5G`: bytes, a whole number up to 2^53 - 1. `subject` is what the error names.
 * Errors: UsageError.
 */
export const parseSize = (text: string, subject: string): number => {
  const groups = SIZE.exec(text)?.groups;
  if (groups === undefined) {
    throw new UsageError(`'${text}' is not a size (such as 512, 64k, 8M, 10G or 1T)`, subject);
  }
  const { digits = '', fraction, unit = '' } = groups;
  const factor = FACTOR[unit.toLowerCase()] ?? 1;
  if (fraction !== undefined && factor === 1) {
    throw new UsageError(`'${text}' is a part of a byte`, subject);
  }
  const bytes = Math.floor(Number(`${digits}.${fraction ?? '0'}`) * factor);
  if (bytes > MAX_OFFSET) throw new UsageError(`'${text}' is more than 2^53 - 1 bytes`, subject);
  return bytes;
};

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];

/** As `qemu-img info` shows a size: three significant digits, `64 KiB`, `1.5 GiB`. */
export const formatSize = (bytes: number): string => {
  // 1000 KiB is shown as 0.977 MiB: the unit goes up where three digits no longer hold the number.
  let power = 0;
  let value = bytes;
  while (value >= 1000 && power < UNITS.length - 1) {
    value /= 1024;
    power++;
  }
  return `${Number(value.toPrecision(3))} ${UNITS[power]}`;
};
