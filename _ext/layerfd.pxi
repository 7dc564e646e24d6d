"""Descriptors of layer files that threads share without the GIL."""


cdef struct slot:
    int fd  # -1: closed
    int users  # threads inside of a system call on it
    int holders  # Python objects and open volumes that point here
    bint doomed  # close it when the last user leaves
    uint64_t used  # when it was entered last, by slot_clock


cdef pthread_mutex_t slot_mutex  # a leaf: held for a few instructions, nothing else is taken under it
cdef uint64_t slot_clock = 0
pthread_mutex_init(&slot_mutex, NULL)


cdef int slot_enter(slot *one) noexcept nogil:
    # Return the descriptor, which stays open until slot_leave, or -1.
    global slot_clock
    cdef int fd
    pthread_mutex_lock(&slot_mutex)
    fd = one.fd
    if fd >= 0:
        one.users += 1
        slot_clock += 1
        one.used = slot_clock
    pthread_mutex_unlock(&slot_mutex)
    return fd


cdef void slot_leave(slot *one) noexcept nogil:
    cdef int fd = -1
    cdef bint gone
    pthread_mutex_lock(&slot_mutex)
    one.users -= 1
    if one.users == 0 and one.doomed:
        fd = one.fd
        one.fd = -1
    gone = one.users == 0 and one.holders == 0
    pthread_mutex_unlock(&slot_mutex)
    if fd >= 0:
        close(fd)
    if gone:
        free(one)


cdef void slot_hold(slot *one) noexcept nogil:
    pthread_mutex_lock(&slot_mutex)
    one.holders += 1
    pthread_mutex_unlock(&slot_mutex)


cdef void slot_drop(slot *one) noexcept nogil:
    # The opposite of slot_hold; the last holder closes.
    pthread_mutex_lock(&slot_mutex)
    one.holders -= 1
    if one.holders == 0:
        one.doomed = True
    one.users += 1  # so that leaving does the rest
    pthread_mutex_unlock(&slot_mutex)
    slot_leave(one)


cdef class LayerFd:
    """A layer's descriptor. Contract: volcore/kernels/datapath.py."""

    cdef slot *one

    def __cinit__(self):
        self.one = <slot *>calloc(1, sizeof(slot))
        if self.one == NULL:
            raise MemoryError
        self.one.fd = -1
        self.one.holders = 1

    def __dealloc__(self):
        if self.one != NULL:
            slot_drop(self.one)

    @property
    def is_open(self):
        return self.one.fd >= 0

    @property
    def used(self):
        return self.one.used

    def install(self, int fd):
        global slot_clock
        if fd < 0 or self.one.fd >= 0 or self.one.doomed:
            raise ValueError("the descriptor must be open, and none may be there")
        pthread_mutex_lock(&slot_mutex)
        slot_clock += 1
        self.one.used = slot_clock
        self.one.fd = fd
        pthread_mutex_unlock(&slot_mutex)

    def enter(self):
        return slot_enter(self.one)

    def leave(self):
        slot_leave(self.one)

    def close(self, bint unless_used=False):
        cdef int fd = -1
        cdef bint busy
        pthread_mutex_lock(&slot_mutex)
        busy = self.one.users > 0
        if not busy:
            fd = self.one.fd
            self.one.fd = -1
        if not unless_used:
            self.one.doomed = True
        pthread_mutex_unlock(&slot_mutex)
        if fd >= 0:
            with nogil:
                close(fd)
        return not busy
