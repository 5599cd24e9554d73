/** Options of `create` that concern encryption (`-o encrypt.…`), named as qemu-img names them. */
import type { BlockError } from '../../../src/base/block-error.ts';
import type { CreateOption, CreatePlan } from '../../../src/block/image-creation.ts';
import { wrongOption } from '../create-header.ts';
import { essivFits, isHash } from './luks-header.ts';
import type { NewLuks } from './luks-key.ts';
import type { CipherSpec } from './sector-cipher.ts';

const PREFIX = 'encrypt.';
const DEFAULT_ITERATION_MS = 2000;

export const encryptionOptions: readonly CreateOption[] = [
  {
    name: 'encrypt.format',
    type: 'choice',
    choices: ['luks'],
    help: 'Encrypt what the guest writes [not encrypted]',
  },
  {
    name: 'encrypt.key-secret',
    type: 'string',
    help: 'Id of the --secret that is the passphrase',
  },
  {
    name: 'encrypt.cipher-alg',
    type: 'choice',
    choices: ['aes-128', 'aes-192', 'aes-256'],
    help: 'Cipher [aes-256]',
  },
  {
    name: 'encrypt.cipher-mode',
    type: 'choice',
    choices: ['xts', 'cbc'],
    help: 'Mode of the cipher [xts]',
  },
  {
    name: 'encrypt.ivgen-alg',
    type: 'choice',
    choices: ['plain', 'plain64', 'essiv'],
    help: 'How each sector gets its initialisation vector [plain64]',
  },
  {
    name: 'encrypt.ivgen-hash-alg',
    type: 'string',
    help: 'Hash of essiv [sha256]',
  },
  {
    name: 'encrypt.hash-alg',
    type: 'string',
    help: 'Hash that stretches the passphrase: sha1, sha256, sha512, … [sha256]',
  },
  {
    name: 'encrypt.iter-time',
    type: 'number',
    help: 'Milliseconds that trying a passphrase is to take [2000]',
  },
];

/** What is asked for; null without encryption. Errors: EINVAL naming the option. */
export const plannedLuks = ({ options, path }: CreatePlan): NewLuks | null => {
  const value = (name: string): string | undefined => options.get(PREFIX + name);
  const wrong = (name: string, message: string): BlockError =>
    wrongOption(path, PREFIX + name, message);
  if (value('format') === undefined) {
    const [given] = [...options.keys()].filter((name) => name.startsWith(PREFIX));
    if (given !== undefined) throw wrongOption(path, given, 'it needs encrypt.format=luks');
    return null;
  }
  if (value('key-secret') === undefined)
    throw wrong('key-secret', 'it is needed: the id of the --secret that is the passphrase');
  const hash = value('hash-alg') ?? 'sha256';
  if (!isHash(hash)) throw wrong('hash-alg', `'${hash}' is no hash that is known here`);
  const iterationMs = Number(value('iter-time') ?? DEFAULT_ITERATION_MS);
  if (iterationMs < 1) throw wrong('iter-time', '0 is no time');
  if ((options.get('preallocation') ?? 'off') !== 'off') {
    const message = 'its clusters would read as noise in an encrypted image';
    throw wrongOption(path, 'preallocation', message);
  }
  if (options.get('data_file_raw') === 'on') {
    const message = 'what lies in the data file of an encrypted image is not what the guest sees';
    throw wrongOption(path, 'data_file_raw', message);
  }
  return { cipher: plannedCipher(value, wrong), hash, iterationMs };
};

const plannedCipher = (
  value: (name: string) => string | undefined,
  wrong: (name: string, message: string) => BlockError,
): Omit<CipherSpec, 'key'> => {
  const mode = value('cipher-mode') === 'cbc' ? 'cbc' : 'xts';
  const algorithm = value('cipher-alg') ?? 'aes-256';
  const keyBits = algorithm === 'aes-128' ? 128 : algorithm === 'aes-192' ? 192 : 256;
  // Its key material is no whole number of sectors, which QEMU does not survive.
  if (keyBits === 192 && mode === 'cbc')
    throw wrong('cipher-alg', 'aes-192 does not go with cbc in QEMU');
  const ivgen = value('ivgen-alg');
  const ivHash = value('ivgen-hash-alg');
  if (ivgen !== 'essiv') {
    if (ivHash !== undefined) throw wrong('ivgen-hash-alg', 'it is for essiv alone');
    return { keyBits, mode, iv: ivgen === 'plain' ? 'plain' : 'plain64', ivHash: null };
  }
  const hash = ivHash ?? 'sha256';
  if (!essivFits(hash)) throw wrong('ivgen-hash-alg', `'${hash}' makes no key of AES`);
  return { keyBits, mode, iv: 'essiv', ivHash: hash };
};
