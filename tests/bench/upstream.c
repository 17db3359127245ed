/* A stand-in for a model server: answers at once, streams at a set pace, and costs next to nothing.

   usage: upstream PORT
   POST /v1/chat/completions   about 700 bytes with usage; with "stream":true one SSE event per token of
                               "max_tokens", each about 210 bytes, then finish, usage if asked for, [DONE]
   GET  /v1/models
   POST /pace/MICROSECONDS     the interval between the events of each stream that starts from now on

   One thread, one epoll, HTTP/1.1 keep-alive, requests fragmented or pipelined in any way. Event i of a stream is
   due at (request arrived + i * interval), so a late event doesn't shift those behind it. Ids and times are
   constants: equal requests get equal bytes, and a changed byte shows. It refuses what it doesn't need: chunked
   request bodies (411) and bodies over 1 MiB (413). */
#include "net.h"
#include <sys/timerfd.h>

enum { REQUEST_BYTES_MAX = 1 << 20, EVENTS_AT_ONCE = 512 };

struct connection {
    int fd;
    int closing;            /* close when the output is written */
    int waits_for_room;     /* registered for EPOLLOUT */
    struct buffer in, out;
    int streaming, wants_usage;
    long prompt_tokens, sent, total;
    int64_t due, interval;
    struct connection *next, *previous; /* in the queue of streams */
};

struct request {
    const char *head, *body;
    size_t head_size, body_size;
};

static int epoll_fd, timer_fd, listen_fd;
static int64_t pace_ns, armed_for;
static struct connection queue = {.next = &queue, .previous = &queue};
static char chunk[WORDS][512];
static size_t chunk_size[WORDS];

#define HEAD_OF_EVENT                                                                                              \
    "data: {\"id\":\"chatcmpl-8f3b6c21d0a94e57b1c2\",\"object\":\"chat.completion.chunk\","                        \
    "\"created\":1790000000,\"model\":\"qwen3.5-9b\",\"system_fingerprint\":\"stand-in\",\"choices\":["

static void append_chunk(struct buffer *out, const char *event) {
    char size[24];
    int digits = snprintf(size, sizeof size, "%zx\r\n", strlen(event));
    buffer_append(out, size, (size_t)digits);
    buffer_append(out, event, strlen(event));
    buffer_append(out, "\r\n", 2);
}

static void prepare_chunks(void) {
    for (int word = 0; word < WORDS; word++) {
        char event[400];
        snprintf(event, sizeof event,
                 HEAD_OF_EVENT "{\"index\":0,\"delta\":{\"content\":\"%s\"},\"finish_reason\":null}]}\n\n", WORD[word]);
        struct buffer whole = {0};
        append_chunk(&whole, event);
        memcpy(chunk[word], whole.data, chunk_size[word] = whole.end);
        free(whole.data);
    }
}

/* The queue is sorted by itself while the pace stays: whoever is served next is due one interval later than all. */
static void enqueue(struct connection *c) {
    struct connection *after = queue.previous;
    while (after != &queue && after->due > c->due) after = after->previous;
    c->previous = after;
    c->next = after->next;
    c->next->previous = c;
    after->next = c;
}

static void dequeue(struct connection *c) {
    if (!c->next) return;
    c->previous->next = c->next;
    c->next->previous = c->previous;
    c->next = c->previous = NULL;
}

static void close_connection(struct connection *c) {
    dequeue(c);
    close(c->fd);
    free(c->in.data);
    free(c->out.data);
    free(c);
}

/* Send what is waiting; -1 when the connection had to be closed. */
static int flush(struct connection *c) {
    int broken = buffer_write(&c->out, c->fd) < 0;
    int waits = buffer_size(&c->out) > 0;
    if (broken || (!waits && c->closing && !c->streaming)) {
        close_connection(c);
        return -1;
    }
    if (waits != c->waits_for_room) {
        watch(epoll_fd, EPOLL_CTL_MOD, c->fd, EPOLLIN | (waits ? EPOLLOUT : 0), c);
        c->waits_for_room = waits;
    }
    return 0;
}

static void respond(struct connection *c, const char *status, const char *body) {
    char head[256];
    int size = snprintf(head, sizeof head,
                        "HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n%s\r\n", status,
                        strlen(body), c->closing ? "connection: close\r\n" : "");
    buffer_append(&c->out, head, (size_t)size);
    buffer_append(&c->out, body, strlen(body));
}

static void respond_whole(struct connection *c) {
    enum { COMPLETION_TOKENS = 64 };
    char body[1024];
    snprintf(body, sizeof body,
             "{\"id\":\"chatcmpl-8f3b6c21d0a94e57b1c2\",\"object\":\"chat.completion\",\"created\":1790000000,"
             "\"model\":\"qwen3.5-9b\",\"system_fingerprint\":\"stand-in\",\"choices\":[{\"index\":0,\"message\":"
             "{\"role\":\"assistant\",\"content\":\"A weir is a low barrier across the width of a river that "
             "alters the flow of the water and usually changes the height of the level. Weirs are used to "
             "measure the rate at which water flows, to prevent floods and to make rivers navigable. The water "
             "goes over the crest freely and each drop of it can be counted.\"},\"logprobs\":null,"
             "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":%ld,\"completion_tokens\":%d,"
             "\"total_tokens\":%ld,\"prompt_tokens_details\":{\"cached_tokens\":0}}}",
             c->prompt_tokens, COMPLETION_TOKENS, c->prompt_tokens + COMPLETION_TOKENS);
    respond(c, "200 OK", body);
}

static void finish_stream(struct connection *c) {
    char event[512];
    append_chunk(&c->out, HEAD_OF_EVENT "{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n");
    if (c->wants_usage) {
        snprintf(event, sizeof event,
                 HEAD_OF_EVENT "],\"usage\":{\"prompt_tokens\":%ld,\"completion_tokens\":%ld,\"total_tokens\":%ld,"
                               "\"prompt_tokens_details\":{\"cached_tokens\":0}}}\n\n",
                 c->prompt_tokens, c->total, c->prompt_tokens + c->total);
        append_chunk(&c->out, event);
    }
    append_chunk(&c->out, "data: [DONE]\n\n");
    buffer_append(&c->out, "0\r\n\r\n", 5);
    c->streaming = 0;
}

/* Put the events that are due into the output and wait for the next. */
static void advance_stream(struct connection *c, int64_t now) {
    while (c->sent < c->total && c->due <= now) {
        buffer_append(&c->out, chunk[c->sent % WORDS], chunk_size[c->sent % WORDS]);
        c->sent++;
        c->due += c->interval;
    }
    if (c->sent == c->total) finish_stream(c);
    else enqueue(c);
}

static void start_stream(struct connection *c, const struct request *r) {
    static const char HEAD[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
                               "transfer-encoding: chunked\r\n\r\n";
    buffer_append(&c->out, HEAD, sizeof HEAD - 1);
    append_chunk(&c->out, HEAD_OF_EVENT "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                                        "\"finish_reason\":null}]}\n\n");
    c->streaming = 1;
    c->wants_usage = json_is_true(r->body, r->body_size, "\"include_usage\"");
    c->total = json_int(r->body, r->body_size, "\"max_tokens\"", 16);
    c->sent = 0;
    c->interval = pace_ns;
    c->due = now_ns();
    advance_stream(c, c->due);
}

static int begins(const struct request *r, const char *start) {
    return r->head_size > strlen(start) && !memcmp(r->head, start, strlen(start));
}

static void answer(struct connection *c, const struct request *r) {
    if (begins(r, "POST /v1/chat/completions ")) {
        c->prompt_tokens = (long)(r->body_size / 6 + 1);
        if (json_is_true(r->body, r->body_size, "\"stream\"")) start_stream(c, r);
        else respond_whole(c);
    } else if (begins(r, "GET /v1/models ")) {
        respond(c, "200 OK",
                "{\"object\":\"list\",\"data\":[{\"id\":\"qwen3.5-9b\",\"object\":\"model\",\"created\":1790000000,"
                "\"owned_by\":\"stand-in\"}]}");
    } else if (begins(r, "POST /pace/")) {
        pace_ns = strtol(r->head + strlen("POST /pace/"), NULL, 10) * 1000;
        respond(c, "200 OK", "{}");
    } else {
        respond(c, "404 Not Found", "{\"error\":{\"message\":\"no such path\",\"type\":\"not_found\"}}");
    }
}

/* The first request in the buffer: 1 when it is whole, 0 when more has to come, -1 when it was refused. */
static int next_request(struct connection *c, struct request *r) {
    const char *bytes = buffer_bytes(&c->in), *blank;
    if (!buffer_size(&c->in) || !(blank = memmem(bytes, buffer_size(&c->in), "\r\n\r\n", 4))) return 0;
    r->head = bytes;
    r->head_size = (size_t)(blank - bytes) + 4;
    r->body = blank + 4;
    const char *length = header_value(r->head, r->head_size, "content-length");
    const char *connection = header_value(r->head, r->head_size, "connection");
    r->body_size = length ? strtoul(length, NULL, 10) : 0;
    int is_chunked = header_value(r->head, r->head_size, "transfer-encoding") != NULL;
    if (is_chunked || r->body_size > REQUEST_BYTES_MAX) {
        c->closing = 1;
        respond(c, is_chunked ? "411 Length Required" : "413 Content Too Large", "{}");
        return -1;
    }
    if (buffer_size(&c->in) < r->head_size + r->body_size) return 0;
    c->closing = connection && !strncasecmp(connection, "close", 5);
    return 1;
}

/* Answer all requests that are here; a stream has to end before the request behind it is looked at. */
static int serve(struct connection *c) {
    struct request r;
    while (!c->streaming && !c->closing) {
        int got = next_request(c, &r);
        if (got <= 0) break;
        answer(c, &r);
        buffer_drop(&c->in, r.head_size + r.body_size);
    }
    return flush(c);
}

static void serve_due_streams(void) {
    uint64_t expirations;
    if (read(timer_fd, &expirations, sizeof expirations) < 0 && errno != EAGAIN) die("timerfd");
    armed_for = 0;
    int64_t now = now_ns();
    while (queue.next != &queue && queue.next->due <= now) {
        struct connection *c = queue.next;
        dequeue(c);
        advance_stream(c, now);
        serve(c);
    }
}

static void arm_timer(void) {
    int64_t due = queue.next == &queue ? 0 : queue.next->due;
    if (due == armed_for) return;
    struct itimerspec at = {.it_value = {.tv_sec = due / 1000000000, .tv_nsec = due % 1000000000}};
    if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL)) die("timerfd_settime");
    armed_for = due;
}

static void accept_all(void) {
    int fd;
    while ((fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = calloc(1, sizeof *c);
        if (!c) die("calloc");
        c->fd = fd;
        no_delay(fd);
        watch(epoll_fd, EPOLL_CTL_ADD, fd, EPOLLIN, c);
    }
}

static void read_and_serve(struct connection *c) {
    ssize_t count = buffer_read(&c->in, c->fd);
    if (count == 0 || (count < 0 && errno != EAGAIN)) close_connection(c);
    else serve(c);
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: upstream PORT\n"), 2;
    struct sockaddr_in address = loopback(atoi(argv[1]));
    int one = 1;
    listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listen_fd, (struct sockaddr *)&address, sizeof address) || listen(listen_fd, 4096)) die("listen");
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    watch(epoll_fd, EPOLL_CTL_ADD, listen_fd, EPOLLIN, &listen_fd);
    watch(epoll_fd, EPOLL_CTL_ADD, timer_fd, EPOLLIN, &timer_fd);
    prepare_chunks();
    struct epoll_event events[EVENTS_AT_ONCE];
    for (;;) {
        int count = epoll_wait(epoll_fd, events, EVENTS_AT_ONCE, -1);
        int timer_fired = 0;
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (events[i].data.ptr == &listen_fd) accept_all();
            else if (events[i].data.ptr == &timer_fd) timer_fired = 1;
            else if (events[i].events & EPOLLOUT) flush(c);
            else read_and_serve(c);
        }
        /* After the loop, since it may close connections that the loop still has events for. */
        if (timer_fired) serve_due_streams();
        arm_timer();
    }
}
