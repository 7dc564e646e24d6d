"""A client of an rbd image in a process of its own, as QEMU's with `cache=none`; tests start it.

Arguments: configuration file, pool, image, and a number from 0 to 255. Commands come by line:
`fill FIRST STEP COUNT` writes blocks FIRST, FIRST+STEP, ... full of the number, each answered
before the next; `put BLOCK NUMBER`; `get BLOCK`, which answers with the block's first byte.
"""

import sys

import rados
import rbd

BLOCK = 4096


def main() -> None:
    conf_path, pool, name, number = sys.argv[1:]
    cluster = rados.Rados(conffile=conf_path, name="client.admin", conf={"rbd_cache": "false"})
    with cluster, cluster.open_ioctx(pool) as ioctx, rbd.Image(ioctx, name) as image:
        print("open", flush=True)
        for line in sys.stdin:
            word, *numbers = line.split()
            answer = "done"
            if word == "fill":
                first, step, count = map(int, numbers)
                for block in range(first, first + step * count, step):
                    image.write(bytes([int(number)]) * BLOCK, block * BLOCK)
            elif word == "put":
                image.write(bytes([int(numbers[1])]) * BLOCK, int(numbers[0]) * BLOCK)
            else:
                answer = str(image.read(int(numbers[0]) * BLOCK, BLOCK)[0])
            print(answer, flush=True)


main()
