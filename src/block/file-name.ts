/**
 * Names of files as headers hold them: a path, `file:PATH`, or `json:{…}` with the options of QEMU's block devices, nested
 * or flattened (`file.filename`). They are untrusted: what is not understood is refused by name, because an option that is
 * passed over could change what is read. Nothing is looked at on disk here: the gate does that.
 */
import { BlockError } from '../base/block-error.ts';

export interface FileName {
  /** A path, absolute or relative to the image that names it, or a URL. */
  readonly name: string;
  /** `name` is a path, whatever it looks like. */
  readonly isPath: boolean;
  /** Format that the name itself declares; null for none. */
  readonly format: string | null;
}

/** Longer ones fit no header of a format that has them. */
const MAX_JSON_BYTES = 4096;
const MAX_DEPTH = 4;

/** Drivers of QEMU's that are our `file`. */
const FILE_DRIVERS: ReadonlySet<string> = new Set(['file', 'host_device']);
const URL_DRIVERS: ReadonlySet<string> = new Set(['http', 'https']);

/** Options that say how to open, not what: they are ours to choose. */
const PASSED_OVER: ReadonlySet<string> = new Set([
  'aio',
  'auto-read-only',
  'cache.direct',
  'cache.no-flush',
  'detect-zeroes',
  'discard',
  'force-share',
  'locking',
  'node-name',
  'read-only',
]);

/** Errors: EINVAL for a `json:` name that cannot be read, EOPNOTSUPP for one that names what we lack; `path`: who names it. */
export const readFileName = (filename: string, path: string): FileName => {
  if (filename.startsWith('json:')) return readJsonName(filename.slice('json:'.length), path);
  if (filename.startsWith('file:'))
    return { name: filename.slice('file:'.length), isPath: true, format: null };
  return { name: filename, isPath: false, format: null };
};

const readJsonName = (text: string, path: string): FileName => {
  const refuse = (what: string): never => {
    const message = `names a file with json:, and ${what}`;
    throw new BlockError({ kind: 'unsupported', message, path, op: 'open' });
  };
  const options = readOptions(text, path);
  const take = (key: string): string | null => {
    const value = options.get(key) ?? null;
    options.delete(key);
    if (value === null || typeof value === 'string') return value;
    return refuse(`its '${key}' is no text`);
  };
  const top = take('driver');
  const isFileItself = top !== null && (FILE_DRIVERS.has(top) || URL_DRIVERS.has(top));
  const prefix = isFileItself ? '' : 'file.';
  const driver = (isFileItself ? top : take('file.driver')) ?? 'file';
  const isFile = FILE_DRIVERS.has(driver);
  if (!isFile && !URL_DRIVERS.has(driver)) refuse(`the driver '${driver}' is not supported there`);
  const key = `${prefix}${isFile ? 'filename' : 'url'}`;
  const name = take(key);
  for (const option of options.keys()) {
    const own = option.startsWith('file.') ? option.slice('file.'.length) : option;
    if (!PASSED_OVER.has(own)) refuse(`its option '${option}' is not supported`);
  }
  if (name === null || name === '') return refuse(`has no '${key}'`);
  return { name, isPath: isFile, format: isFileItself ? 'raw' : top };
};

/** Options by flattened name. Errors: EINVAL. */
const readOptions = (text: string, path: string): Map<string, unknown> => {
  const bad = (what: string): BlockError =>
    new BlockError({
      kind: 'invalid-image',
      errno: 'EINVAL',
      message: `names a file with json:, and the name ${what}`,
      path,
      op: 'open',
    });
  if (text.length > MAX_JSON_BYTES) throw bad(`is longer than ${MAX_JSON_BYTES} bytes`);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw bad('is not JSON');
  }
  const options = new Map<string, unknown>();
  const add = (prefix: string, object: object, depth: number): void => {
    if (depth > MAX_DEPTH) throw bad(`is nested deeper than ${MAX_DEPTH}`);
    for (const [key, inner] of Object.entries(object)) {
      const name = `${prefix}${key}`;
      if (isObject(inner)) add(`${name}.`, inner, depth + 1);
      else if (options.has(name)) throw bad(`has '${name}' twice`);
      else options.set(name, inner);
    }
  };
  if (!isObject(value)) throw bad('is no object');
  add('', value, 1);
  return options;
};

const isObject = (value: unknown): value is object =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
