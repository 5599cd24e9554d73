/** Encrypted images: made by the real create code with few iterations, and read by QEMU with the same key. */
import { writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { drivers } from '../../drivers/index.ts';
import { qcow2 } from '../../drivers/qcow2/index.ts';
import { noLocks } from '../../src/block/image-locks.ts';
import { DriverRegistry } from '../../src/block/registry.ts';
import { type SecretSource, Secrets } from '../../src/block/secrets.ts';
import { createImage } from '../../src/image/create.ts';
import { checkOptions } from '../../src/image/create-options.ts';
import type { OfflineContext } from '../../src/image/open.ts';
import { qemuImg } from './qemu-img.ts';

/** A newline at the end is part of it. */
export const PASSPHRASE = 'correct horse\n';

const keyFile = (directory: string): string => join(directory, 'passphrase');

/** Writes the key's file; where it is. */
export const writeKey = async (directory: string): Promise<SecretSource> => {
  await writeFile(keyFile(directory), PASSPHRASE, { mode: 0o600 });
  return keyOf(directory);
};

/** The key of the images of a directory, whose file `writeKey` writes. */
export const keyOf = (directory: string): SecretSource => ({
  id: 'key',
  file: keyFile(directory),
  image: null,
});

export const encryptedContext = (secrets: readonly SecretSource[]): OfflineContext => ({
  registry: new DriverRegistry(drivers),
  locks: noLocks,
  backingDirectories: [],
  secrets: new Secrets(secrets, { keep: false }),
});

export interface LuksRecipe {
  readonly bytes: number;
  /** Of the format, as `-o` has them. */
  readonly options?: Readonly<Record<string, string>>;
  readonly backing?: { readonly filename: string; readonly format: string };
}

/** An empty image, encrypted with LUKS; the key's file is written beside it. */
export const makeLuksImage = async (path: string, recipe: LuksRecipe): Promise<void> => {
  const options = {
    'encrypt.format': 'luks',
    'encrypt.key-secret': 'key',
    'encrypt.iter-time': '1',
    'encrypt.cipher-alg': 'aes-128',
    ...recipe.options,
  };
  await makeImage(path, { ...recipe, options });
};

/** With the options alone. Errors: as `createImage`, and for options that are wrong. */
export const makeImage = async (path: string, recipe: LuksRecipe): Promise<void> => {
  const secret = await writeKey(dirname(path));
  const request = {
    path,
    format: 'qcow2',
    virtualSizeBytes: recipe.bytes,
    options: checkOptions(Object.entries(recipe.options ?? {}), qcow2),
    backing: recipe.backing ?? null,
    withoutOpeningBacking: false,
  };
  await createImage(request, encryptedContext([secret]));
};

/** Options of QEMU's tools for an image and its key; `--image-opts` makes every image of the line one of this kind. */
export const qemuKeyOptions = (path: string, more = ''): readonly string[] => [
  '--object',
  `secret,id=key,file=${keyFile(dirname(path))}`,
  '--image-opts',
  `driver=qcow2,encrypt.key-secret=key,file.filename=${path}${more}`,
];

/** What QEMU shows of an encrypted image is written to `target`. */
export const qemuDecrypt = async (path: string, target: string): Promise<void> => {
  await qemuImg(['convert', '-O', 'raw', ...qemuKeyOptions(path), target]);
};
