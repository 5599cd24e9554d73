/** Sizes as people write them and read them. Powers of 1024, as everywhere in this field. */
import { MAX_OFFSET } from './units.ts';

const UNITS = ['', 'k', 'm', 'g', 't', 'p', 'e'];
const SIZE = /^(?<digits>\d+)(?:\.(?<fraction>\d+))?(?<unit>[bkmgtpe]?)$/i;

/** The bytes that a text stands for, or what is wrong with it as the end of a sentence. */
export type ParsedSize = { readonly bytes: number } | { readonly problem: string };

/** `512`, `64k`, `8M`, `10G`, `1T`, `1.5G`: whole bytes up to 2^53 - 1. */
export const readSize = (text: string): ParsedSize => {
  const groups = SIZE.exec(text)?.groups;
  if (groups === undefined) {
    return { problem: `'${text}' is not a size (such as 512, 64k, 8M, 10G or 1T)` };
  }
  const { digits = '', fraction } = groups;
  const unit = (groups['unit'] ?? '').toLowerCase();
  const power = unit === 'b' ? 0 : UNITS.indexOf(unit);
  if (fraction !== undefined && power === 0) return { problem: `'${text}' is a part of a byte` };
  const bytes = Math.floor(Number(`${digits}.${fraction ?? '0'}`) * 1024 ** power);
  if (bytes > MAX_OFFSET) return { problem: `'${text}' is more than 2^53 - 1 bytes` };
  return { bytes };
};

/** As `qemu-img info` shows a size: three significant digits, `64 KiB`, `1.5 GiB`. */
export const formatSize = (bytes: number): string => {
  // 1000 KiB is shown as 0.977 MiB: the unit goes up where three digits no longer hold the number.
  let power = 0;
  let value = bytes;
  while (value >= 1000 && power < UNITS.length - 1) {
    value /= 1024;
    power++;
  }
  const unit = power === 0 ? 'B' : `${UNITS[power]?.toUpperCase()}iB`;
  return `${Number(value.toPrecision(3))} ${unit}`;
};
