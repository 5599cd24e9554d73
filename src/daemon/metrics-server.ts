/**
 * Serves the metrics of a mount to Prometheus: GET /metrics, on loopback. It must never harm the mount: an engine that takes
 * over and finds the port in use serves without, and tries again.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { toBlockError } from '../base/block-error.ts';
import type { Log } from '../base/log.ts';
import type { MetricsSource } from './metrics.ts';

export interface MetricsAddress {
  /** A loopback address. */
  readonly host: string;
  readonly port: number;
}

const MAX_CONNECTIONS = 16;
const REQUEST_MS = 5000;
const RETRY_MS = 2000;

/**
 * Listens; returns what ends it. `mustListen`: throws EADDRINUSE and its like; else they are logged and it is tried again.
 */
export const serveMetrics = async (
  address: MetricsAddress,
  source: MetricsSource,
  options: { readonly mustListen: boolean; readonly log: Log },
): Promise<() => void> => {
  // Only a mount that is asked for metrics loads the client.
  const { Metrics } = await import('./metrics.ts');
  const metrics = new Metrics(source);
  const answer = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const [path] = (request.url ?? '').split('?');
    if (request.method !== 'GET' && request.method !== 'HEAD') {
      response.writeHead(405, { allow: 'GET, HEAD' }).end();
    } else if (path !== '/metrics') response.writeHead(404).end('metrics are at /metrics\n');
    else {
      const text = await metrics.text();
      response.writeHead(200, { 'content-type': metrics.contentType }).end(text);
    }
  };
  const server = createServer((request, response) => {
    answer(request, response).catch((error: unknown) => {
      options.log.warning('metrics', toBlockError(error).describe());
      if (!response.headersSent) response.writeHead(500);
      response.end();
    });
  });
  server.maxConnections = MAX_CONNECTIONS;
  server.headersTimeout = REQUEST_MS;
  server.requestTimeout = REQUEST_MS;
  return keepListening(server, address, options);
};

const keepListening = async (
  server: Server,
  address: MetricsAddress,
  { mustListen, log }: { readonly mustListen: boolean; readonly log: Log },
): Promise<() => void> => {
  let timer: NodeJS.Timeout | undefined;
  const tryAgain = async (): Promise<void> => {
    await listen(server, address).catch(() => {
      timer = setTimeout(() => void tryAgain(), RETRY_MS);
    });
  };
  try {
    await listen(server, address);
  } catch (error) {
    const failure = toBlockError(error, { op: 'serve metrics' });
    if (mustListen) throw failure;
    log.warning('metrics', `${failure.describe()}: trying again`);
    timer = setTimeout(() => void tryAgain(), RETRY_MS);
  }
  // What goes wrong later concerns one client.
  server.on('error', (error) => log.debug('metrics', String(error)));
  return () => {
    clearTimeout(timer);
    server.close();
    server.closeAllConnections();
  };
};

const listen = (server: Server, { host, port }: MetricsAddress): Promise<void> =>
  new Promise((resolve, reject) => {
    const failed = (error: Error): void => reject(error);
    server.once('error', failed);
    server.listen({ host, port }, () => {
      server.off('error', failed);
      resolve();
    });
  });
