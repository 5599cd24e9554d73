/**
 * NBD URIs: `nbd://HOST[:PORT]/EXPORT` and `nbd+unix:///EXPORT?socket=PATH`, as the NBD project's doc/uri.md and QEMU
 * have them. The export's name is what follows the first `/`, percent-decoded.
 */
import { BlockError } from '../../src/base/block-error.ts';
import { parseUrl, withoutPassword } from '../../src/block/remote-url.ts';
import { MAX_STRING_BYTES } from './protocol.ts';

export interface NbdAddress {
  readonly server:
    | { readonly host: string; readonly port: number }
    /** Of a socket of this machine. */
    | { readonly path: string };
  readonly exportName: string;
}

const DEFAULT_PORT = 10_809;
const SECURE = new Set(['nbds:', 'nbds+unix:']);

/** Errors: EINVAL for what is no NBD URI; EOPNOTSUPP for NBD over TLS. */
export const parseNbdUrl = (text: string): NbdAddress => {
  const url = parseUrl(text);
  const refuse = (message: string): BlockError =>
    new BlockError({ kind: 'bad-request', message, path: withoutPassword(text), op: 'open' });
  if (SECURE.has(url.protocol)) {
    const message = 'NBD over TLS is not supported';
    throw new BlockError({ kind: 'unsupported', message, path: withoutPassword(text), op: 'open' });
  }
  if (url.username !== '' || url.password !== '') throw refuse('NBD knows no user and password');
  const exportName = decode(url.pathname.slice(1));
  if (exportName === null) throw refuse("the export's name is no percent-encoded UTF-8");
  if (Buffer.byteLength(exportName) > MAX_STRING_BYTES) {
    throw refuse(`the export's name is longer than ${MAX_STRING_BYTES} bytes`);
  }
  if (url.protocol === 'nbd:') {
    if (url.hostname === '') throw refuse('it names no host');
    if (url.search !== '') throw refuse(`it has a query (${url.search}), which means nothing here`);
    // An IPv6 address has brackets in a URL.
    const host = url.hostname.replace(/^\[(?<address>.*)\]$/, '$<address>');
    return { server: { host, port: Number(url.port || DEFAULT_PORT) }, exportName };
  }
  const path = url.searchParams.get('socket');
  if (url.hostname !== '') throw refuse('it names a host; a socket stands in ?socket=PATH');
  if (path === null || !path.startsWith('/')) throw refuse('it names no socket (?socket=/PATH)');
  return { server: { path }, exportName };
};

const decode = (text: string): string | null => {
  try {
    return decodeURIComponent(text);
  } catch {
    return null;
  }
};
