/**
 * The process behind `loaded-vdiskfs.ts`: runs one command line after the other, as the real program does, with what it
 * prints kept. Ends with the test that started it.
 */
import { runLine } from '../../src/cli/run-line.ts';

export interface CommandRequest {
  readonly args: readonly string[];
  readonly cwd: string;
}

export interface CommandReply {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

const capture = (stream: NodeJS.WriteStream): (() => string) => {
  const kept: Buffer[] = [];
  const write = stream.write;
  const keep = (chunk: string | Uint8Array, ...rest: readonly unknown[]): boolean => {
    kept.push(Buffer.from(chunk as string));
    const done = rest.find((r) => typeof r === 'function') as ((error?: Error) => void) | undefined;
    if (done !== undefined) process.nextTick(done);
    return true;
  };
  stream.write = keep as typeof stream.write;
  return () => {
    stream.write = write;
    return Buffer.concat(kept).toString('utf8');
  };
};

process.on('message', async ({ args, cwd }: CommandRequest) => {
  process.chdir(cwd);
  const [stdout, stderr] = [capture(process.stdout), capture(process.stderr)];
  const status = await runLine(args);
  const reply: CommandReply = { status, stdout: stdout(), stderr: stderr() };
  process.send?.(reply);
});
process.on('disconnect', () => process.exit());
