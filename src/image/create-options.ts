/** `-o name=value,…` of `vdiskfs create`, checked against what a format declares. */
import { BlockError } from '../base/block-error.ts';
import { readSize } from '../base/size.ts';
import type { DriverDescriptor } from '../block/driver.ts';
import type { CreateOption } from '../block/image-creation.ts';

/** Splits `a=1,b=2`; a doubled comma is a comma of the value. Errors: EINVAL for a part without a name. */
export const splitOptions = (text: string): [name: string, value: string][] => {
  const parts = text.replaceAll(',,', '\0').split(',');
  return parts.map((part) => {
    const [name, ...value] = part.replaceAll('\0', ',').split('=');
    if (name === undefined || name === '') throw wrong(`'${text}' has a part without a name`);
    // `-o lazy_refcounts` switches on, as qemu-img has it.
    return [name, value.length === 0 ? 'on' : value.join('=')];
  });
};

/**
 * The options by name with sizes as decimal bytes and booleans as `on` or `off`; of one given twice the last counts.
 * Errors: EINVAL naming the option, and what it may be.
 */
export const checkOptions = (
  given: readonly (readonly [string, string])[],
  descriptor: DriverDescriptor,
): Map<string, string> => {
  const known = new Map(descriptor.createOptions.map((o) => [o.name, o]));
  const checked = new Map<string, string>();
  for (const [name, value] of given) {
    const option = known.get(name);
    if (option === undefined) {
      const names = [...known.keys()].join(', ');
      throw wrong(
        `format ${descriptor.name} has no option '${name}'`,
        names === '' ? 'it has none' : `its options: ${names}`,
      );
    }
    checked.set(name, checkValue(option, value));
  }
  return checked;
};

const SWITCH: Readonly<Record<string, 'on' | 'off'>> = {
  on: 'on',
  yes: 'on',
  true: 'on',
  off: 'off',
  no: 'off',
  false: 'off',
};

const checkValue = (option: CreateOption, value: string): string => {
  switch (option.type) {
    case 'size': {
      const size = readSize(value);
      if ('problem' in size) throw wrong(`option '${option.name}': ${size.problem}`);
      return String(size.bytes);
    }
    case 'number':
      if (!/^\d{1,15}$/.test(value))
        throw wrong(`option '${option.name}': '${value}' is no number`);
      return String(Number(value));
    case 'boolean': {
      const state = SWITCH[value.toLowerCase()];
      if (state === undefined) throw wrong(`option '${option.name}': '${value}' is not on or off`);
      return state;
    }
    case 'choice': {
      const choices = option.choices ?? [];
      if (choices.includes(value)) return value;
      throw wrong(`option '${option.name}': '${value}' is not one of ${choices.join(', ')}`);
    }
    case 'string':
      return value;
  }
};

const wrong = (message: string, hint?: string): BlockError =>
  new BlockError({ kind: 'bad-request', message, hint, op: 'create' });
