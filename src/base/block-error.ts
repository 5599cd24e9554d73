/**
 * The one error class of the block layer. `kind` is for control flow, `errno` for the kernel, the rest
 * for people. It is translated once to a FUSE reply, once to a QMP class, once to a line of the command.
 */
import { ERRNO, type ErrnoName, isErrnoName } from './errno.ts';

export type BlockErrorKind =
  /** A structure of an image breaks its format; the message names field, value and offset. */
  | 'invalid-image'
  /** Right by the format, but not implemented here. */
  | 'unsupported'
  /** The open gate, or a permission of the host, forbids it. */
  | 'not-permitted'
  | 'read-only'
  /** Another program holds the image. */
  | 'locked'
  /** Something here still uses it. */
  | 'busy'
  | 'no-space'
  | 'not-found'
  /** The request itself is wrong: range, alignment, option. */
  | 'bad-request'
  /** lseek: nothing there. */
  | 'out-of-range'
  | 'interrupted'
  | 'closed'
  /** The host said so: EIO and everything that has no kind of its own. */
  | 'io';

const ERRNO_OF_KIND: Record<BlockErrorKind, ErrnoName> = {
  'invalid-image': 'EIO',
  unsupported: 'EOPNOTSUPP',
  'not-permitted': 'EACCES',
  'read-only': 'EROFS',
  locked: 'EBUSY',
  busy: 'EBUSY',
  'no-space': 'ENOSPC',
  'not-found': 'ENOENT',
  'bad-request': 'EINVAL',
  'out-of-range': 'ENXIO',
  interrupted: 'EINTR',
  closed: 'EBADF',
  io: 'EIO',
};

const KIND_OF_ERRNO: Partial<Record<ErrnoName, BlockErrorKind>> = {
  ENOSPC: 'no-space',
  EDQUOT: 'no-space',
  ENOENT: 'not-found',
  EACCES: 'not-permitted',
  EPERM: 'not-permitted',
  EROFS: 'read-only',
  EBUSY: 'busy',
  EINVAL: 'bad-request',
  EINTR: 'interrupted',
  EBADF: 'closed',
  EOPNOTSUPP: 'unsupported',
};

export interface BlockErrorFields {
  readonly kind: BlockErrorKind;
  /** What went wrong, with field and value, in one sentence without the file's name. */
  readonly message: string;
  /** What the person can do about it. */
  readonly hint?: string | undefined;
  /** Defaults to the errno that fits the kind. */
  readonly errno?: ErrnoName | undefined;
  /** The operation: 'open', 'read', 'write', … */
  readonly op?: string | undefined;
  readonly node?: string | undefined;
  readonly path?: string | undefined;
  /** Bytes; shown in hexadecimal. */
  readonly offset?: number | undefined;
  readonly cause?: unknown;
}

/** What crosses threads, processes and sockets (a posted Error would lose its fields). */
export interface BlockErrorWire {
  readonly kind: BlockErrorKind;
  readonly errno: ErrnoName;
  readonly text: string;
  readonly hint?: string | undefined;
  readonly op?: string | undefined;
  readonly node?: string | undefined;
  readonly path?: string | undefined;
  readonly offset?: number | undefined;
}

export class BlockError extends Error {
  override readonly name = 'BlockError';
  readonly kind: BlockErrorKind;
  readonly errno: ErrnoName;
  readonly hint: string | undefined;
  readonly op: string | undefined;
  readonly node: string | undefined;
  readonly path: string | undefined;
  readonly offset: number | undefined;

  constructor(fields: BlockErrorFields) {
    super(fields.message, fields.cause === undefined ? undefined : { cause: fields.cause });
    this.kind = fields.kind;
    this.errno = fields.errno ?? ERRNO_OF_KIND[fields.kind];
    this.hint = fields.hint;
    this.op = fields.op;
    this.node = fields.node;
    this.path = fields.path;
    this.offset = fields.offset;
  }

  /** The positive number for the kernel. */
  get errnoNumber(): number {
    return ERRNO[this.errno];
  }

  /** `<path>: <what>[ at offset 0x…][: <what to do>]`, as the command line and the log print it. */
  describe(): string {
    const where = this.path ?? this.node;
    const at = this.offset === undefined ? '' : ` at offset 0x${this.offset.toString(16)}`;
    const text = `${this.message}${at}`;
    return `${where === undefined ? '' : `${where}: `}${text}${this.hint === undefined ? '' : `: ${this.hint}`}`;
  }

  /** The same error with context that the thrower did not know; fields already set stay. */
  with(
    context: Partial<Pick<BlockErrorFields, 'op' | 'node' | 'path' | 'offset' | 'hint'>>,
  ): BlockError {
    return new BlockError({
      kind: this.kind,
      errno: this.errno,
      message: this.message,
      hint: this.hint ?? context.hint,
      op: this.op ?? context.op,
      node: this.node ?? context.node,
      path: this.path ?? context.path,
      offset: this.offset ?? context.offset,
      cause: this.cause,
    });
  }

  toWire(): BlockErrorWire {
    const { kind, errno, message, hint, op, node, path, offset } = this;
    return { kind, errno, text: message, hint, op, node, path, offset };
  }

  static fromWire(wire: BlockErrorWire): BlockError {
    const { text, ...rest } = wire;
    return new BlockError({ ...rest, message: text });
  }
}

/**
 * Any thrown thing as a BlockError: itself, a Node system error by its code, everything else as EIO
 * with the original as cause.
 */
export const toBlockError = (
  thrown: unknown,
  context: Partial<Pick<BlockErrorFields, 'op' | 'node' | 'path' | 'offset'>> = {},
): BlockError => {
  if (thrown instanceof BlockError) return thrown.with(context);
  const code = (thrown as { code?: unknown } | null)?.code;
  const errno = typeof code === 'string' && isErrnoName(code) ? code : 'EIO';
  const message = plainMessage(thrown instanceof Error ? thrown.message : String(thrown));
  return new BlockError({
    ...context,
    kind: KIND_OF_ERRNO[errno] ?? 'io',
    errno,
    message,
    cause: thrown,
  });
};

// Node says "ENOENT: no such file or directory, stat '/a'": the path and the errno stand in their own fields.
const plainMessage = (text: string): string =>
  /^E[A-Z0-9]+: (?<what>.*?)(?:, [a-z]+(?: '.*')?)?$/.exec(text)?.groups?.['what'] ?? text;

/** Shorthand for the commonest error: an on-disk field that breaks its format. */
export const invalidImage = (
  message: string,
  context: Partial<Pick<BlockErrorFields, 'path' | 'node' | 'offset' | 'hint'>> = {},
): BlockError => new BlockError({ ...context, kind: 'invalid-image', message, op: 'open' });
