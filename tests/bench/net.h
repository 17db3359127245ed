/* What the stand-in model server and the load generator share: time, byte buffers, sockets, header look-ups. */
#ifndef WEIR_BENCH_NET_H
#define WEIR_BENCH_NET_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

static inline int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Bytes that arrive or wait to leave: data[start, end) is what counts. */
struct buffer {
    char *data;
    size_t start, end, capacity;
};

static inline size_t buffer_size(const struct buffer *b) { return b->end - b->start; }

static inline char *buffer_bytes(const struct buffer *b) { return b->data + b->start; }

static inline void buffer_drop(struct buffer *b, size_t count) {
    b->start += count;
    if (b->start == b->end) b->start = b->end = 0;
}

/* Room for `count` more bytes at the end: first by moving to the front, then by growing. */
static inline void buffer_reserve(struct buffer *b, size_t count) {
    if (b->capacity - b->end >= count) return;
    if (b->start) {
        memmove(b->data, buffer_bytes(b), buffer_size(b));
        b->end -= b->start;
        b->start = 0;
    }
    if (b->capacity - b->end >= count) return;
    b->capacity = (b->end + count) * 2;
    b->data = realloc(b->data, b->capacity);
    if (!b->data) die("realloc");
}

static inline void buffer_append(struct buffer *b, const char *bytes, size_t count) {
    buffer_reserve(b, count);
    memcpy(b->data + b->end, bytes, count);
    b->end += count;
}

/* Read once; what read(2) gave, with -1 and EAGAIN when there is nothing yet. */
static inline ssize_t buffer_read(struct buffer *b, int fd) {
    buffer_reserve(b, 65536);
    ssize_t count = read(fd, b->data + b->end, b->capacity - b->end);
    if (count > 0) b->end += (size_t)count;
    return count;
}

/* Write what the socket takes; 0 when all or some went, -1 when the connection is broken. */
static inline int buffer_write(struct buffer *b, int fd) {
    while (buffer_size(b)) {
        ssize_t count = send(fd, buffer_bytes(b), buffer_size(b), MSG_NOSIGNAL);
        if (count < 0) return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -1;
        buffer_drop(b, (size_t)count);
    }
    return 0;
}

/* The value of a header in head[0, size), which begins with the start line; NULL when it is not there. */
static inline const char *header_value(const char *head, size_t size, const char *name) {
    size_t name_size = strlen(name);
    const char *line = head, *end = head + size;
    while ((line = memchr(line, '\n', (size_t)(end - line)))) {
        line++;
        if ((size_t)(end - line) <= name_size) return NULL;
        if (line[name_size] == ':' && !strncasecmp(line, name, name_size)) {
            line += name_size + 1;
            while (line < end && (*line == ' ' || *line == '\t')) line++;
            return line;
        }
    }
    return NULL;
}

/* Where the value of a JSON key begins, whatever blanks follow the colon; NULL when the key is not there.
   The texts of the benchmark hold no quotation marks, so a key can't be mistaken for text. */
static inline const char *json_value(const char *text, size_t size, const char *quoted_key) {
    size_t key_size = strlen(quoted_key);
    const char *at = memmem(text, size, quoted_key, key_size), *end = text + size;
    if (!at) return NULL;
    for (at += key_size; at < end && (*at == ' ' || *at == ':'); at++) {}
    return at < end ? at : NULL;
}

static inline int json_is_true(const char *text, size_t size, const char *quoted_key) {
    const char *at = json_value(text, size, quoted_key);
    return at && *at == 't';
}

/* The text must be followed by something that is no digit, as JSON's closing brace is. */
static inline long json_int(const char *text, size_t size, const char *quoted_key, long otherwise) {
    const char *at = json_value(text, size, quoted_key);
    return at && *at >= '0' && *at <= '9' ? strtol(at, NULL, 10) : otherwise;
}

static inline struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static inline void no_delay(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static inline void watch(int epoll, int operation, int fd, uint32_t events, void *subject) {
    struct epoll_event event = {.events = events, .data.ptr = subject};
    if (epoll_ctl(epoll, operation, fd, &event)) die("epoll_ctl");
}

/* The sixteen deltas of a stream, in turn. */
#define WORDS 16
static const char *const WORD[WORDS] = {" the",   " weir", " holds", " water", " and",   " counts", " each", " drop",
                                        " which", " goes", " over",  " its",   " crest", " for",    " free", " flow"};
#endif
