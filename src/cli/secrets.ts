/** `--secret id=ID,file=FILE[,image=NAME]`: keys of encrypted images. The keys themselves are never on a command line. */
import { resolve } from 'node:path';
import type { Argv } from 'yargs';
import type { SecretSource } from '../block/secrets.ts';
import { UsageError } from './command.ts';

/** `--secret`. */
export const declareSecrets = <T>(yargs: Argv<T>) =>
  yargs.option('secret', {
    type: 'string',
    array: true,
    default: [] as string[],
    requiresArg: true,
    defaultDescription: 'none',
    describe:
      'Key of encrypted images: id=ID,file=FILE, tried on all, or with image=NAME on one (repeatable)',
  });

/** `--object`, as qemu-img has it. */
export const declareObjects = <T>(yargs: Argv<T>) =>
  yargs.option('object', {
    type: 'string',
    array: true,
    default: [] as string[],
    requiresArg: true,
    defaultDescription: 'none',
    describe: 'The same as qemu-img spells it: secret,id=ID,file=FILE',
  });

/** Errors: UsageError. */
export const parseSecrets = (
  secrets: readonly string[],
  objects: readonly string[] = [],
): readonly SecretSource[] => {
  const found = [
    ...secrets.map((text) => parseFields(text, '--secret', ['id', 'file', 'image'])),
    ...objects.map(parseObject),
  ];
  const repeated = found.find(({ id }, i) => found.findIndex((other) => other.id === id) < i);
  if (repeated === undefined) return found;
  throw new UsageError(`there is more than one secret '${repeated.id}'`, '--secret');
};

const parseObject = (text: string): SecretSource => {
  const rest = /^(?:qom-type=)?secret,(?<rest>.*)$/s.exec(text)?.groups?.['rest'];
  if (rest === undefined) throw new UsageError('is no secret,id=ID,file=FILE', '--object');
  return parseFields(rest, '--object', ['id', 'file']);
};

const parseFields = (
  text: string,
  option: '--secret' | '--object',
  known: readonly string[],
): SecretSource => {
  // What is wrong may hold a key: it is not repeated.
  const fields = new Map<string, string>();
  for (const part of text.replaceAll(',,', '\0').split(',')) {
    const [name = '', ...value] = part.replaceAll('\0', ',').split('=');
    if (name === 'data')
      throw new UsageError('a key on the command line is seen by everybody: give file=', option);
    if (!known.includes(name) || value.length === 0 || fields.has(name))
      throw new UsageError(`is not made of ${known.map((k) => `${k}=`).join(', ')}`, option);
    fields.set(name, value.join('='));
  }
  const [id, file, image] = [fields.get('id'), fields.get('file'), fields.get('image')];
  if (id === undefined || id === '' || file === undefined || file === '')
    throw new UsageError('needs id=ID and file=FILE', option);
  const isPath = image?.includes('/') === true;
  return {
    id,
    file: resolve(file),
    image: image === undefined ? null : isPath ? resolve(image) : image,
  };
};
