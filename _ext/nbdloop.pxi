"""The transmission phase of one NBD connection on a plain socket. Protocol:
https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md, all numbers big-endian.
"""

cdef extern from *:
    """
    static int spinning;  /* threads, of the whole process */
    static inline int spin_begin(int most) {
        if (__atomic_add_fetch(&spinning, 1, __ATOMIC_RELAXED) <= most) return 1;
        __atomic_sub_fetch(&spinning, 1, __ATOMIC_RELAXED);
        return 0;
    }
    static inline void spin_end(void) { __atomic_sub_fetch(&spinning, 1, __ATOMIC_RELAXED); }
    """
    bint spin_begin(int most) nogil
    void spin_end() nogil

cdef enum:
    REQUEST_BYTES = 28
    SIMPLE_BYTES = 16
    CHUNK_HEADER_BYTES = 28  # of OFFSET_DATA, with its offset
    STAGE_BYTES = 294912  # a queue of 64 writes of 4 KiB, with room to spare
    OUT_BYTES = 294912
    SHORT_BYTES_MAX = 65536  # longer requests take longer than waking a worker
    OUT_SEND_BYTES = 65536  # replies that wait for more of them at most
    KEPT_BYTES = 2097152  # size of the buffers that are used again
    KEPT_MAX = 16
    SPIN_NS = 100000  # how long to look for the next request before sleeping
    QUICK_NS = 150000  # waits that are shorter make looking worth while
    QUICK_COUNT = 3  # so many in a row
    SLOW_NS = 200000  # short writes that take longer than this on average may overlap
    COMMAND_READ = 0
    COMMAND_WRITE = 1
    FLAG_DF = 4

cdef uint32_t REQUEST_MAGIC = 0x25609513
cdef uint32_t SIMPLE_MAGIC = 0x67446698
cdef uint32_t STRUCTURED_MAGIC = 0x668E33EF

# Why pump() returned.
cdef enum:
    END = 0  # the client is gone
    RARE = 1  # the request in `now` is Python's
    SPAWN = 2  # a job waits, and no worker is idle
    BAD = 3  # no request, but something else

cdef int processors_to_spare = max(1, len(sched_getaffinity(0)) // 2)

cdef struct job:
    uint64_t cookie
    uint64_t offset_bytes
    uint32_t length_bytes
    uint16_t flags
    uint16_t command
    uint8_t *payload
    size_t payload_room
    size_t cost_bytes  # of payload or reply in memory
    bint short
    job *next

cdef struct buffer:
    uint8_t *data
    size_t room

# Large buffers, shared by all connections: fresh memory costs a page fault for each 4 KiB.
cdef pthread_mutex_t kept_mutex
cdef uint8_t *kept[KEPT_MAX]
cdef int kept_count = 0
pthread_mutex_init(&kept_mutex, NULL)


cdef uint8_t *take_buffer(size_t length_bytes, size_t *room) noexcept nogil:
    global kept_count
    cdef uint8_t *found = NULL
    room[0] = length_bytes
    if SHORT_BYTES_MAX < length_bytes <= KEPT_BYTES:
        room[0] = KEPT_BYTES
        pthread_mutex_lock(&kept_mutex)
        if kept_count:
            kept_count -= 1
            found = kept[kept_count]
        pthread_mutex_unlock(&kept_mutex)
    return found if found != NULL else <uint8_t *>malloc(room[0])


cdef void give_buffer(uint8_t *data, size_t room) noexcept nogil:
    global kept_count
    if data != NULL and room == KEPT_BYTES:
        pthread_mutex_lock(&kept_mutex)
        if kept_count < KEPT_MAX:
            kept[kept_count] = data
            kept_count += 1
            data = NULL
        pthread_mutex_unlock(&kept_mutex)
    free(data)


cdef inline void put16(uint8_t *to, uint16_t value) noexcept nogil:
    value = htobe16(value)
    memcpy(to, &value, 2)


cdef inline void put32(uint8_t *to, uint32_t value) noexcept nogil:
    value = htobe32(value)
    memcpy(to, &value, 4)


cdef inline void put64(uint8_t *to, uint64_t value) noexcept nogil:
    value = htobe64(value)
    memcpy(to, &value, 8)


cdef inline uint64_t now_ns() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return <uint64_t>time.tv_sec * 1000000000 + time.tv_nsec


cdef class NbdLoop:
    """Requests of one connection. Contract: volcore/kernels/datapath.py."""

    cdef DataPath path
    cdef int fd
    cdef bint structured
    cdef size_t request_max
    cdef int jobs_max
    cdef size_t job_bytes_max
    cdef volatile bint _draining
    cdef volatile bint broken
    cdef uint8_t *stage
    cdef size_t start
    cdef size_t end
    cdef uint8_t *out
    cdef size_t out_used
    cdef pthread_mutex_t send_mutex
    cdef pthread_mutex_t state_mutex  # guards what is below
    cdef pthread_cond_t changed
    cdef pthread_cond_t arrived
    cdef job *first_job
    cdef job *last_job
    cdef int jobs_waiting
    cdef int jobs
    cdef size_t job_bytes
    cdef int workers
    cdef int idle
    cdef bint stopping
    cdef pthread_mutex_t gate_mutex  # guards the two below
    cdef pthread_cond_t quiet
    cdef bint _writable
    cdef int writing
    cdef uint64_t short_ns
    cdef uint32_t quick  # waits in a row that were short
    cdef bint again  # serve the present request once more
    cdef job now

    def __cinit__(self, DataPath path not None, int fd, *, bint structured, bint writable,
                  size_t request_bytes_max, int in_flight_max, size_t in_flight_bytes_max):
        cdef pthread_condattr_t attributes
        self.path = path
        self.fd = fd
        self.structured = structured
        self._writable = writable
        self.request_max = request_bytes_max
        self.jobs_max = in_flight_max
        self.job_bytes_max = in_flight_bytes_max
        self.stage = <uint8_t *>malloc(STAGE_BYTES)
        self.out = <uint8_t *>malloc(OUT_BYTES)
        pthread_mutex_init(&self.send_mutex, NULL)
        pthread_mutex_init(&self.state_mutex, NULL)
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(&self.changed, &attributes)
        pthread_cond_init(&self.arrived, &attributes)
        pthread_mutex_init(&self.gate_mutex, NULL)
        pthread_cond_init(&self.quiet, &attributes)
        pthread_condattr_destroy(&attributes)
        if self.stage == NULL or self.out == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef job *gone
        while self.first_job != NULL:
            gone = self.first_job
            self.first_job = gone.next
            give_buffer(gone.payload, gone.payload_room)
            free(gone)
        give_buffer(self.now.payload, self.now.payload_room)
        free(self.stage)
        free(self.out)
        pthread_mutex_destroy(&self.send_mutex)
        pthread_mutex_destroy(&self.state_mutex)
        pthread_cond_destroy(&self.changed)
        pthread_cond_destroy(&self.arrived)
        pthread_mutex_destroy(&self.gate_mutex)
        pthread_cond_destroy(&self.quiet)

    @property
    def draining(self):
        return self._draining

    @draining.setter
    def draining(self, bint value):
        self._draining = value

    # ---- the right to write ----

    @property
    def writable(self):
        return self._writable

    @writable.setter
    def writable(self, bint value):
        pthread_mutex_lock(&self.gate_mutex)
        self._writable = value
        pthread_mutex_unlock(&self.gate_mutex)

    def wait_writes(self, uint64_t patience_ns):
        """Wait until no write that was let in is under way; tell whether that came in time."""
        cdef timespec until
        cdef uint64_t until_ns = now_ns() + patience_ns
        cdef int error = 0
        cdef bint ended
        until.tv_sec = until_ns // 1000000000
        until.tv_nsec = until_ns % 1000000000
        with nogil:
            pthread_mutex_lock(&self.gate_mutex)
            while self.writing and error != ETIMEDOUT:
                error = pthread_cond_timedwait(&self.quiet, &self.gate_mutex, &until)
            ended = self.writing == 0
            pthread_mutex_unlock(&self.gate_mutex)
        return ended

    cdef int write_gated(self, uint64_t block, Py_ssize_t count,
                         const uint8_t *source) noexcept nogil:
        # ASK where the gate is shut: then Python refuses.
        cdef bint may
        cdef int outcome
        pthread_mutex_lock(&self.gate_mutex)
        may = self._writable
        self.writing += may
        pthread_mutex_unlock(&self.gate_mutex)
        if not may:
            return ASK
        outcome = self.path.write_blocks(block, count, source)
        pthread_mutex_lock(&self.gate_mutex)
        self.writing -= 1
        if not self.writing and not self._writable:
            pthread_cond_broadcast(&self.quiet)
        pthread_mutex_unlock(&self.gate_mutex)
        return outcome

    # ---- the reader ----

    def pump(self, bint again=False):
        cdef int why
        self.again = again
        with nogil:
            why = self.serve()
        return why

    def request(self):
        return (self.now.flags, self.now.command, self.now.cookie, self.now.offset_bytes,
                self.now.length_bytes)

    cdef int serve(self) noexcept nogil:
        cdef int why
        cdef bint more = True
        while more:
            if not self.again:
                if self.end - self.start < REQUEST_BYTES and not self.fill(REQUEST_BYTES):
                    return END
                if not self.parse():
                    return BAD
            self.again = False
            why = self.serve_one()
            if why != DONE:
                return why - 1  # see serve_one
        return END

    cdef bint parse(self) noexcept nogil:
        cdef const uint8_t *at = self.stage + self.start
        cdef uint32_t magic, length
        cdef uint16_t word
        cdef uint64_t wide
        memcpy(&magic, at, 4)
        memcpy(&word, at + 4, 2)
        self.now.flags = be16toh(word)
        memcpy(&word, at + 6, 2)
        self.now.command = be16toh(word)
        memcpy(&wide, at + 8, 8)
        self.now.cookie = be64toh(wide)
        memcpy(&wide, at + 16, 8)
        self.now.offset_bytes = be64toh(wide)
        memcpy(&length, at + 24, 4)
        self.now.length_bytes = be32toh(length)
        self.now.short = self.now.length_bytes <= SHORT_BYTES_MAX
        self.now.cost_bytes = 0
        if self.now.command == COMMAND_READ or self.now.command == COMMAND_WRITE:
            self.now.cost_bytes = self.now.length_bytes
        self.start += REQUEST_BYTES
        return be32toh(magic) == REQUEST_MAGIC

    cdef int serve_one(self) noexcept nogil:
        # DONE, or one more than the reason for which Python has to do something.
        cdef job *now = &self.now
        cdef uint64_t size_bytes = self.path._size_bytes
        if self._draining or now.length_bytes == 0 or now.length_bytes > self.request_max:
            return RARE + 1
        if now.offset_bytes > size_bytes or now.length_bytes > size_bytes - now.offset_bytes:
            return RARE + 1
        if now.offset_bytes % BLOCK_BYTES or now.length_bytes % BLOCK_BYTES:
            return RARE + 1
        if now.command == COMMAND_READ:
            if now.flags == 0 or (now.flags == FLAG_DF and self.structured):
                return self.serve_read()
        elif now.command == COMMAND_WRITE and now.flags == 0 and self._writable:
            return self.serve_write()
        return RARE + 1

    cdef int serve_read(self) noexcept nogil:
        cdef job *now = &self.now
        cdef size_t header = CHUNK_HEADER_BYTES if self.structured else SIMPLE_BYTES
        cdef int outcome
        if not now.short:
            if self.more_to_do():
                return self.hand_on()
            if not self.flush_out():
                return END + 1
            outcome = self.run_job(now)
            return RARE + 1 if outcome == ASK else DONE
        if self.out_used + header + now.length_bytes > OUT_BYTES and not self.flush_out():
            return END + 1
        outcome = self.path.read_blocks(
            now.offset_bytes // BLOCK_BYTES, now.length_bytes // BLOCK_BYTES,
            self.out + self.out_used + header, True, False)
        if outcome == WAIT and not self.more_to_do():
            if not self.flush_out():
                return END + 1
            outcome = self.path.read_blocks(
                now.offset_bytes // BLOCK_BYTES, now.length_bytes // BLOCK_BYTES,
                self.out + self.out_used + header, False, False)
        if outcome == WAIT:
            return self.hand_on()
        if outcome == ASK:
            return RARE + 1
        self.put_read_header(self.out + self.out_used, now)
        self.out_used += header + now.length_bytes
        return self.replied()

    cdef int serve_write(self) noexcept nogil:
        cdef job *now = &self.now
        cdef uint64_t begin
        cdef int outcome
        if now.payload == NULL and now.short and self.short_ns <= SLOW_NS:
            if self.end - self.start < now.length_bytes and not self.fill(now.length_bytes):
                return END + 1
            begin = now_ns()
            outcome = self.write_gated(
                now.offset_bytes // BLOCK_BYTES, now.length_bytes // BLOCK_BYTES,
                self.stage + self.start)
            if outcome != DONE:
                return RARE + 1  # the payload is still staged
            self.start += now.length_bytes
            self.timed(begin)
            self.put_simple(now.cookie)
            return self.replied()
        if now.payload == NULL:
            if not self.admit(now.cost_bytes) or not self.receive_payload():
                return END + 1
        if self.more_to_do():
            return self.hand_on()
        if not self.flush_out():
            return END + 1
        return RARE + 1 if self.run_job(now) == ASK else DONE

    cdef void timed(self, uint64_t begin_ns) noexcept nogil:
        # Moving average of what a short write takes; threads may lose each other's share.
        self.short_ns = self.short_ns - (self.short_ns >> 3) + ((now_ns() - begin_ns) >> 3)

    cdef int replied(self) noexcept nogil:
        # Replies wait for each other as long as whole requests are at hand.
        if self.out_used >= OUT_SEND_BYTES and not self.flush_out():
            return END + 1
        return DONE

    cdef bint more_to_do(self) noexcept nogil:
        cdef pollfd waiting
        if self.start != self.end or self.jobs:
            return True
        waiting.fd = self.fd
        waiting.events = POLLIN
        return poll(&waiting, 1, 0) > 0

    # ---- receiving ----

    cdef bint fill(self, size_t wanted) noexcept nogil:
        # Stage at least `wanted` bytes, and what else has come; False at the end of the stream.
        cdef Py_ssize_t got
        if not self.flush_out():
            return False
        if self.start:
            memmove(self.stage, self.stage + self.start, self.end - self.start)
            self.end -= self.start
            self.start = 0
        while self.end < wanted:
            got = self.receive_some()
            if got < 0 and errno == EINTR:
                continue
            if got < 0 and errno == EAGAIN:  # nothing for a long time
                if not self.end and not self.sleep():
                    return False
                continue
            if got <= 0:
                return False
            self.end += got
        return True

    cdef Py_ssize_t receive_some(self) noexcept nogil:
        # A client with one request at a time answers within microseconds: being there when it does
        # spares the wake-up, which costs more than the request. Bounded by processors and by luck.
        cdef uint64_t begin = now_ns()
        cdef Py_ssize_t got = -1
        if self.quick >= QUICK_COUNT and spin_begin(processors_to_spare):
            while got < 0 and now_ns() - begin < SPIN_NS:
                got = recv(self.fd, self.stage + self.end, STAGE_BYTES - self.end, MSG_DONTWAIT)
                if got < 0 and errno != EAGAIN:
                    break
            spin_end()
            if got >= 0:
                return got
            self.quick = 0
        got = recv(self.fd, self.stage + self.end, STAGE_BYTES - self.end, 0)
        self.quick = self.quick + 1 if now_ns() - begin < QUICK_NS else 0
        return got

    cdef bint sleep(self) noexcept nogil:
        # Wait for the next request without the buffers: most connections are idle most of the time.
        cdef pollfd waiting
        free(self.stage)
        free(self.out)
        waiting.fd = self.fd
        waiting.events = POLLIN
        poll(&waiting, 1, -1)
        self.stage = <uint8_t *>malloc(STAGE_BYTES)
        self.out = <uint8_t *>malloc(OUT_BYTES)
        return self.stage != NULL and self.out != NULL

    cdef bint receive(self, uint8_t *target, size_t length) noexcept nogil:
        cdef size_t staged = min(length, self.end - self.start)
        cdef Py_ssize_t got
        memcpy(target, self.stage + self.start, staged)
        self.start += staged
        target += staged
        length -= staged
        if length and not self.flush_out():
            return False
        while length:
            got = recv(self.fd, target, length, 0)
            if got < 0 and (errno == EINTR or errno == EAGAIN):
                continue
            if got <= 0:
                return False
            target += got
            length -= got
        return True

    cdef bint receive_payload(self) noexcept nogil:
        cdef job *now = &self.now
        now.payload = take_buffer(now.length_bytes, &now.payload_room)
        if now.payload == NULL:
            return False
        if self.receive(now.payload, now.length_bytes):
            return True
        self.drop_payload()
        return False

    cdef void drop_payload(self) noexcept nogil:
        give_buffer(self.now.payload, self.now.payload_room)
        self.now.payload = NULL

    def take_payload(self):
        """Receive the payload of the present write, if that is still to do; False at the end."""
        cdef bint ok = self.now.payload != NULL
        if not ok:
            with nogil:
                ok = self.admit(self.now.cost_bytes) and self.receive_payload()
        return ok

    def payload(self):
        if self.now.payload == NULL:
            return None
        return PyMemoryView_FromMemory(
            <char *>self.now.payload, self.now.length_bytes, PyBUF_READ)

    def end_request(self):
        with nogil:
            self.drop_payload()

    def skip(self, uint64_t length):
        """Receive and forget; False at the end of the stream."""
        cdef size_t room, part
        cdef bint ok = True
        cdef uint8_t *scratch
        with nogil:
            if self.now.payload != NULL:
                self.drop_payload()  # it has come already
                length = 0
            scratch = take_buffer(KEPT_BYTES, &room)
            ok = scratch != NULL
            while ok and length:
                part = min(length, <uint64_t>KEPT_BYTES)
                ok = self.receive(scratch, part)
                length -= part
            give_buffer(scratch, room)
        return ok

    # ---- sending ----

    cdef void put_simple(self, uint64_t cookie) noexcept nogil:
        cdef uint8_t *to = self.out + self.out_used
        put32(to, SIMPLE_MAGIC)
        put32(to + 4, 0)
        put64(to + 8, cookie)
        self.out_used += SIMPLE_BYTES

    cdef void put_read_header(self, uint8_t *to, const job *done) noexcept nogil:
        if not self.structured:
            put32(to, SIMPLE_MAGIC)
            put32(to + 4, 0)
            put64(to + 8, done.cookie)
            return
        put32(to, STRUCTURED_MAGIC)
        put16(to + 4, 1)  # the last chunk of its reply
        put16(to + 6, 1)  # OFFSET_DATA
        put64(to + 8, done.cookie)
        put32(to + 16, 8 + done.length_bytes)
        put64(to + 20, done.offset_bytes)

    cdef bint send_all(self, iovec *parts, size_t count) noexcept nogil:
        # Whole replies, one after the other; a client that cannot be reached ends the connection.
        cdef msghdr message
        cdef Py_ssize_t sent
        pthread_mutex_lock(&self.send_mutex)
        while count and not self.broken:
            memset(&message, 0, sizeof(message))
            message.msg_iov = parts
            message.msg_iovlen = min(count, <size_t>1024)
            sent = sendmsg(self.fd, &message, MSG_NOSIGNAL)
            if sent < 0 and errno == EINTR:
                continue
            if sent < 0:
                self.broken = True
                shutdown(self.fd, SHUT_RDWR)
                break
            while count and <size_t>sent >= parts[0].iov_len:
                sent -= parts[0].iov_len
                parts += 1
                count -= 1
            if count:
                parts[0].iov_base = <uint8_t *>parts[0].iov_base + sent
                parts[0].iov_len -= sent
        pthread_mutex_unlock(&self.send_mutex)
        return not self.broken

    cdef bint flush_out(self) noexcept nogil:
        cdef iovec part
        if not self.out_used:
            return not self.broken
        part.iov_base = self.out
        part.iov_len = self.out_used
        self.out_used = 0
        return self.send_all(&part, 1)

    def send(self, parts):
        """Send one whole reply from any thread; its pieces are contiguous bytes."""
        cdef Py_ssize_t number, count = len(parts)
        cdef iovec *vectors = <iovec *>malloc(max(count, 1) * sizeof(iovec))
        cdef Py_buffer *views = <Py_buffer *>malloc(max(count, 1) * sizeof(Py_buffer))
        cdef Py_ssize_t held = 0
        try:
            if vectors == NULL or views == NULL:
                raise MemoryError
            for number in range(count):
                PyObject_GetBuffer(parts[number], &views[number], PyBUF_SIMPLE)
                held += 1
                vectors[number].iov_base = views[number].buf
                vectors[number].iov_len = views[number].len
            with nogil:
                self.send_all(vectors, count)
        finally:
            for number in range(held):
                PyBuffer_Release(&views[number])
            free(vectors)
            free(views)

    def flush(self):
        """Send the replies that wait; the reader's."""
        with nogil:
            self.flush_out()

    # ---- jobs ----

    cdef bint admit(self, size_t cost_bytes) noexcept nogil:
        # Wait until one more request may be in memory.
        cdef bint full = True
        while full:
            pthread_mutex_lock(&self.state_mutex)
            full = self.jobs > 0 and (
                self.jobs >= self.jobs_max or self.job_bytes + cost_bytes > self.job_bytes_max)
            if full and not self.out_used:
                pthread_cond_wait(&self.changed, &self.state_mutex)
            pthread_mutex_unlock(&self.state_mutex)
            if full and not self.flush_out():
                return False
        return True

    cdef int hand_on(self) noexcept nogil:
        # Queue the present request for a worker; SPAWN + 1 if there should be one more.
        cdef job *queued
        cdef bint lonely
        if not self.admit(self.now.cost_bytes):
            self.drop_payload()
            return END + 1
        queued = <job *>malloc(sizeof(job))
        if queued == NULL:
            return RARE + 1
        queued[0] = self.now
        queued.next = NULL
        self.now.payload = NULL
        pthread_mutex_lock(&self.state_mutex)
        if self.last_job != NULL:
            self.last_job.next = queued
        else:
            self.first_job = queued
        self.last_job = queued
        self.jobs += 1
        self.jobs_waiting += 1
        self.job_bytes += queued.cost_bytes
        lonely = self.idle < self.jobs_waiting
        pthread_cond_signal(&self.arrived)
        pthread_mutex_unlock(&self.state_mutex)
        return SPAWN + 1 if lonely else DONE

    def hand(self):
        """Queue the present request for a worker, payload included; tell if one more is wanted."""
        cdef int why
        with nogil:
            why = self.hand_on()
        if why == RARE + 1:
            raise MemoryError
        return why == SPAWN + 1

    def is_busy(self):
        """Tell whether the present request would keep another one waiting."""
        cdef bint busy
        with nogil:
            busy = self.more_to_do()
        return busy

    cdef int run_job(self, job *one) noexcept nogil:
        # DONE: answered, its payload given back. ASK: nothing has happened.
        cdef uint64_t block = one.offset_bytes // BLOCK_BYTES
        cdef Py_ssize_t count = one.length_bytes // BLOCK_BYTES
        cdef uint8_t header[CHUNK_HEADER_BYTES]
        cdef iovec parts[2]
        cdef uint8_t *data
        cdef size_t room
        cdef uint64_t begin = now_ns()
        cdef bint sparse
        if one.flags & ~FLAG_DF or one.offset_bytes % BLOCK_BYTES or one.length_bytes % BLOCK_BYTES:
            return ASK
        if one.command == COMMAND_WRITE:
            if self.write_gated(block, count, one.payload) != DONE:
                return ASK
            if one.short:
                self.timed(begin)
            put32(header, SIMPLE_MAGIC)
            put32(header + 4, 0)
            put64(header + 8, one.cookie)
            parts[0].iov_base = header
            parts[0].iov_len = SIMPLE_BYTES
            give_buffer(one.payload, one.payload_room)
            one.payload = NULL
            self.send_all(parts, 1)
            return DONE
        if one.command != COMMAND_READ or not one.length_bytes:
            return ASK
        data = take_buffer(one.length_bytes, &room)
        if data == NULL:
            return ASK
        sparse = self.structured and not one.short and not one.flags & FLAG_DF
        if self.path.read_blocks(block, count, data, False, sparse) != DONE:
            give_buffer(data, room)
            return ASK
        self.put_read_header(header, one)
        parts[0].iov_base = header
        parts[0].iov_len = CHUNK_HEADER_BYTES if self.structured else SIMPLE_BYTES
        parts[1].iov_base = data
        parts[1].iov_len = one.length_bytes
        self.send_all(parts, 2)
        give_buffer(data, room)
        return DONE

    cdef job *next_job(self, uint64_t patience_ns) noexcept nogil:
        # NULL: none came, or there will be none; then the worker is no longer counted.
        cdef timespec until
        cdef uint64_t until_ns = now_ns() + patience_ns
        cdef job *found = NULL
        cdef int error = 0
        until.tv_sec = until_ns // 1000000000
        until.tv_nsec = until_ns % 1000000000
        pthread_mutex_lock(&self.state_mutex)
        self.idle += 1
        while self.first_job == NULL and not self.stopping and error != ETIMEDOUT:
            error = pthread_cond_timedwait(&self.arrived, &self.state_mutex, &until)
        self.idle -= 1
        found = self.first_job
        if found != NULL:
            self.first_job = found.next
            if self.first_job == NULL:
                self.last_job = NULL
            self.jobs_waiting -= 1
        else:
            self.workers -= 1
        pthread_mutex_unlock(&self.state_mutex)
        return found

    cdef void retire(self, job *done) noexcept nogil:
        pthread_mutex_lock(&self.state_mutex)
        self.jobs -= 1
        self.job_bytes -= done.cost_bytes
        pthread_cond_signal(&self.changed)
        pthread_mutex_unlock(&self.state_mutex)
        give_buffer(done.payload, done.payload_room)
        free(done)

    def enlist(self, int workers_max):
        """Count one more worker, unless there are enough."""
        pthread_mutex_lock(&self.state_mutex)
        cdef bint wanted = self.workers < workers_max and self.idle < self.jobs_waiting
        self.workers += wanted
        pthread_mutex_unlock(&self.state_mutex)
        return wanted

    def discharge(self):
        """Count one worker less: it could not be started."""
        pthread_mutex_lock(&self.state_mutex)
        self.workers -= 1
        pthread_mutex_unlock(&self.state_mutex)

    @property
    def workers_now(self):
        return self.workers

    def work(self, uint64_t patience_ns, prepare, handle):
        """Run jobs until none comes for `patience_ns`; prepare(request) tells whether one that was
        declined is worth another try, handle(request, payload) does the rare."""
        cdef job *one
        cdef int outcome
        while True:
            with nogil:
                one = self.next_job(patience_ns)
                outcome = DONE
                if one != NULL:
                    outcome = self.run_job(one)
                    if outcome == DONE:
                        self.retire(one)
            if one == NULL:
                return
            if outcome == ASK:
                self._ask(one, prepare, handle)

    def work_once(self, prepare, handle):
        """Run one waiting job here, if there is one."""
        cdef job *one
        cdef int outcome = DONE
        with nogil:
            pthread_mutex_lock(&self.state_mutex)
            self.workers += 1
            pthread_mutex_unlock(&self.state_mutex)
            one = self.next_job(0)
            if one != NULL:
                outcome = self.run_job(one)
                if outcome == DONE:
                    self.retire(one)
        if one == NULL:
            return
        self.discharge()
        if outcome == ASK:
            self._ask(one, prepare, handle)

    cdef void _ask(self, job *one, prepare, handle):
        cdef int outcome = ASK
        request = (one.flags, one.command, one.cookie, one.offset_bytes, one.length_bytes)
        if prepare(request):
            with nogil:
                outcome = self.run_job(one)
                if outcome == DONE:
                    self.retire(one)
        if outcome == DONE:
            return
        view = None
        if one.payload != NULL:
            view = PyMemoryView_FromMemory(<char *>one.payload, one.length_bytes, PyBUF_READ)
        try:
            handle(request, view)
        finally:
            if view is not None:
                view.release()
            self.retire(one)

    def wait_idle(self, uint64_t patience_ns):
        """Wait until no job is under way; tell whether that came in time."""
        cdef timespec until
        cdef uint64_t until_ns = now_ns() + patience_ns
        cdef int error = 0
        cdef bint idle
        until.tv_sec = until_ns // 1000000000
        until.tv_nsec = until_ns % 1000000000
        with nogil:
            pthread_mutex_lock(&self.state_mutex)
            while self.jobs and error != ETIMEDOUT:
                error = pthread_cond_timedwait(&self.changed, &self.state_mutex, &until)
            idle = self.jobs == 0
            pthread_mutex_unlock(&self.state_mutex)
        return idle

    def stop(self):
        """Let workers end as soon as nothing waits."""
        pthread_mutex_lock(&self.state_mutex)
        self.stopping = True
        pthread_cond_broadcast(&self.arrived)
        pthread_mutex_unlock(&self.state_mutex)
