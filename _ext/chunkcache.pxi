"""The maps of an open volume: which layer owns each block, and with which CRC-32C."""


cdef struct chunk:
    uint64_t index
    uint16_t *owners
    uint32_t *crcs
    uint8_t *states
    uint8_t *maybe_durable
    uint64_t version
    uint64_t durable_version
    uint64_t used
    bint noted
    bint dirty
    volatile uint8_t *mark  # 1 while dirty
    uint8_t own_mark
    chunk *next  # in its bucket
    chunk *newer  # in the list of dirty ones
    chunk *older
    PyObject *map  # the ChunkState that it is part of


cdef struct stripe:
    pthread_mutex_t mutex  # recursive
    chunk *buckets[BUCKETS]
    chunk *oldest_dirty
    chunk *newest_dirty
    Py_ssize_t count
    Py_ssize_t dirty_count
    uint64_t clock


cdef inline chunk *find_chunk(stripe *one, uint64_t index) noexcept nogil:
    cdef chunk *found = one.buckets[(index // STRIPES) % BUCKETS]
    while found != NULL and found.index != index:
        found = found.next
    if found != NULL:
        one.clock += 1
        found.used = one.clock
    return found


cdef void link_dirty(stripe *one, chunk *changed) noexcept nogil:
    if changed.dirty:
        return
    changed.dirty = True
    changed.mark[0] = 1
    changed.newer = NULL
    changed.older = one.newest_dirty
    if one.newest_dirty != NULL:
        one.newest_dirty.newer = changed
    else:
        one.oldest_dirty = changed
    one.newest_dirty = changed
    one.dirty_count += 1


cdef void unlink_dirty(stripe *one, chunk *settled) noexcept nogil:
    if not settled.dirty:
        return
    settled.dirty = False
    settled.mark[0] = 0
    if settled.older != NULL:
        settled.older.newer = settled.newer
    else:
        one.oldest_dirty = settled.newer
    if settled.newer != NULL:
        settled.newer.older = settled.older
    else:
        one.newest_dirty = settled.older
    settled.newer = settled.older = NULL
    one.dirty_count -= 1


cdef chunk *remove_chunk(stripe *one, uint64_t index) noexcept nogil:
    cdef chunk **place = &one.buckets[(index // STRIPES) % BUCKETS]
    cdef chunk *found
    while place[0] != NULL and place[0].index != index:
        place = &place[0].next
    found = place[0]
    if found != NULL:
        place[0] = found.next
        found.next = NULL
        one.count -= 1
    return found


cdef chunk *least_used_clean(stripe *one, uint64_t besides) noexcept nogil:
    cdef chunk *found
    cdef chunk *worst = NULL
    cdef size_t bucket
    for bucket in range(BUCKETS):
        found = one.buckets[bucket]
        while found != NULL:
            if not found.dirty and found.index != besides:
                if worst == NULL or found.used < worst.used:
                    worst = found
            found = found.next
    return worst


cdef class ChunkState:
    """The arrays of one chunk, pinned. Contract: volcore/kernels/datapath.py."""

    cdef chunk one
    cdef Py_buffer views[5]
    cdef int view_count

    def __init__(self, uint64_t index, owners, crcs, states, maybe_durable, mark=None):
        if self.view_count:
            raise TypeError("a ChunkState is made once")
        self.one.index = index
        self.one.map = <PyObject *>self
        for number, (array, item) in enumerate(
            ((owners, 2), (crcs, 4), (states, 1), (maybe_durable, 1))
        ):
            PyObject_GetBuffer(array, &self.views[number], PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS)
            self.view_count += 1
            if self.views[number].len != item * CHUNK_BLOCKS:
                raise ValueError(f"array {number} of a chunk's map has the wrong size")
        self.one.owners = <uint16_t *>self.views[0].buf
        self.one.crcs = <uint32_t *>self.views[1].buf
        self.one.states = <uint8_t *>self.views[2].buf
        self.one.maybe_durable = <uint8_t *>self.views[3].buf
        self.one.mark = &self.one.own_mark
        if mark is not None:
            PyObject_GetBuffer(mark, &self.views[4], PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS)
            self.view_count += 1
            if self.views[4].len != 1:
                raise ValueError("a mark is one byte")
            self.one.mark = <uint8_t *>self.views[4].buf

    def __dealloc__(self):
        cdef int number
        for number in range(self.view_count):
            PyBuffer_Release(&self.views[number])

    @property
    def index(self):
        return self.one.index

    @property
    def version(self):
        return self.one.version

    @version.setter
    def version(self, uint64_t value):
        self.one.version = value

    @property
    def durable_version(self):
        return self.one.durable_version

    @durable_version.setter
    def durable_version(self, uint64_t value):
        self.one.durable_version = value

    @property
    def noted(self):
        return self.one.noted

    @noted.setter
    def noted(self, bint value):
        self.one.noted = value

    @property
    def dirty(self):
        return self.one.dirty


cdef class Stripe:
    """One lock of an open volume and the maps under it. Contract: volcore/kernels/datapath.py."""

    cdef stripe *one

    def __cinit__(self):
        cdef pthread_mutexattr_t attributes
        self.one = <stripe *>calloc(1, sizeof(stripe))
        if self.one == NULL:
            raise MemoryError
        pthread_mutexattr_init(&attributes)
        pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE)
        pthread_mutex_init(&self.one.mutex, &attributes)
        pthread_mutexattr_destroy(&attributes)

    def __dealloc__(self):
        if self.one != NULL:
            self._forget_all()
            pthread_mutex_destroy(&self.one.mutex)
            free(self.one)

    cdef void _forget_all(self):
        cdef size_t bucket
        cdef chunk *gone
        for bucket in range(BUCKETS):
            while self.one.buckets[bucket] != NULL:
                gone = self.one.buckets[bucket]
                self.one.buckets[bucket] = gone.next
                gone.next = NULL
                gone.mark = &gone.own_mark  # what was not durable stays marked
                unlink_dirty(self.one, gone)
                self.one.count -= 1
                Py_DECREF(<object>gone.map)

    def acquire(self):
        if pthread_mutex_trylock(&self.one.mutex) != 0:
            with nogil:
                pthread_mutex_lock(&self.one.mutex)

    def release(self):
        pthread_mutex_unlock(&self.one.mutex)

    def __enter__(self):
        self.acquire()
        return self

    def __exit__(self, kind, value, trace):
        pthread_mutex_unlock(&self.one.mutex)

    def __len__(self):
        return self.one.count

    @property
    def dirty_count(self):
        return self.one.dirty_count

    def find(self, uint64_t index):
        cdef chunk *found = find_chunk(self.one, index)
        return None if found == NULL else <object>found.map

    def add(self, ChunkState state not None):
        cdef chunk *one = &state.one
        cdef chunk **bucket = &self.one.buckets[(one.index // STRIPES) % BUCKETS]
        if find_chunk(self.one, one.index) != NULL:
            raise ValueError(f"chunk {one.index} is there already")
        Py_INCREF(state)
        one.next = bucket[0]
        bucket[0] = one
        self.one.count += 1
        self.one.clock += 1
        one.used = self.one.clock

    def shrink(self, Py_ssize_t count_max, uint64_t besides):
        cdef chunk *gone
        cdef Py_ssize_t removed = 0
        while self.one.count > count_max:
            gone = least_used_clean(self.one, besides)
            if gone == NULL:
                break
            remove_chunk(self.one, gone.index)
            removed += 1
            Py_DECREF(<object>gone.map)
        return removed

    def states(self):
        cdef chunk *found
        cdef size_t bucket
        listed = []
        for bucket in range(BUCKETS):
            found = self.one.buckets[bucket]
            while found != NULL:
                listed.append(<object>found.map)
                found = found.next
        return listed

    def dirty(self):
        cdef chunk *found = self.one.oldest_dirty
        listed = []
        while found != NULL:
            listed.append(<object>found.map)
            found = found.newer
        return listed

    def soil(self, ChunkState state not None):
        if find_chunk(self.one, state.one.index) != &state.one:
            raise ValueError(f"chunk {state.one.index} is not in this stripe")
        link_dirty(self.one, &state.one)

    def settle(self, ChunkState state not None):
        unlink_dirty(self.one, &state.one)

    def clear(self):
        if self.one.dirty_count:
            raise ValueError("changed maps may not be forgotten")
        self._forget_all()
