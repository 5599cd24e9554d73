"""What a program written with QEMU's own client library does with the control socket: argument 1 is its path."""

import asyncio
import json
import sys

from qemu.qmp import ExecuteError, QMPClient


async def main() -> None:
    client = QMPClient('test')
    await client.connect(sys.argv[1])
    seen = {}
    version = await client.execute('query-version')
    seen['major'] = version['qemu']['major']
    seen['devices'] = sorted(b['device'] for b in await client.execute('query-block'))
    try:
        await client.execute('block-stream', {'device': 'nobody'})
    except ExecuteError as error:
        seen['missing'] = error.error_class
    with client.listener(('JOB_STATUS_CHANGE', 'BLOCK_JOB_COMPLETED')) as listener:
        await client.execute('block-stream', {'device': 'vm', 'job-id': 'job0', 'auto-dismiss': False})
        events = []
        async for event in listener:
            events.append(event['data'].get('status', event['event']))
            if events[-1] == 'concluded':
                break
        seen['events'] = events
    seen['jobs'] = [(j['id'], j['status']) for j in await client.execute('query-jobs')]
    await client.execute('job-dismiss', {'id': 'job0'})
    # Several in flight, each with an id of its own.
    answers = await asyncio.gather(*(client.execute('query-jobs') for _ in range(20)))
    seen['answers'] = len(answers)
    await client.disconnect()
    print(json.dumps(seen))


asyncio.run(main())
