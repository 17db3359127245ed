/* The load generator: closed-loop requests or paced streams over keep-alive connections; one line of JSON.

   usage: load PORT KEY CONNECTIONS PROMPT_BYTES whole MILLISECONDS
          load PORT KEY CONNECTIONS PROMPT_BYTES stream EVENTS INTERVAL_US REPEATS DEADLINE_MS

   whole: each connection asks again as soon as it has its answer; at the end of the time none is begun, and those
   under way are waited for, so that what is counted here is all that the gateway was asked.
   stream: each connection takes REPEATS streams of EVENTS tokens, one after the other; the first starts are spread
   over seven intervals. Event i ideally arrives at (request sent + i * interval); lateness is how long after that
   it did. Streams that are not over at the deadline count as incomplete. An answer is right only if its status is
   200, its framing is intact, it carries usage, and (streams) it holds every token in order and [DONE]. The hash
   covers the bytes of all data lines but the one with the usage, which a gateway may add to. */
#include "net.h"
#include <ctype.h>

enum { EVENTS_AT_ONCE = 512, WAIT_MS_MAX = 20000, SPREAD_INTERVALS = 7 };

enum phase { IDLE, HEAD, WHOLE_BODY, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER };

struct connection {
    int fd;
    enum phase phase;
    struct buffer in, out, body; /* bytes off the wire; to the wire; the decoded body that is not looked at yet */
    size_t left;                 /* bytes of the body or chunk still to come */
    int closes, status, is_done; /* is_done: the stream said [DONE] */
    int64_t sent_at;
    long streams_left, events, prompt_tokens, completion_tokens;
    uint64_t hash;
};

struct series {
    int64_t *values;
    size_t count, capacity;
};

static int epoll_fd, port, is_stream, under_way;
static long event_count, interval_ns;
static const char *request;
static size_t request_size;
static int64_t stop_at;

static long answers, wrong, reconnects, incomplete, events_total, prompt_tokens, completion_tokens;
static uint64_t common_hash;
static int hashes_differ;
static struct series latency, first_token, lateness;

static void series_add(struct series *s, int64_t value) {
    if (s->count == s->capacity) {
        s->capacity = s->capacity ? s->capacity * 2 : 4096;
        s->values = realloc(s->values, s->capacity * sizeof *s->values);
        if (!s->values) die("realloc");
    }
    s->values[s->count++] = value;
}

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void series_print(const char *name, struct series *s) {
    static const double AT[] = {0.5, 0.9, 0.99, 1.0};
    if (s->count) qsort(s->values, s->count, sizeof *s->values, by_value);
    printf(",\"%s_us\":[", name);
    for (int i = 0; i < 4; i++) {
        size_t index = (size_t)(AT[i] * (double)(s->count ? s->count - 1 : 0));
        printf("%s%.1f", i ? "," : "", s->count ? (double)s->values[index] / 1000.0 : 0.0);
    }
    printf("]");
}

static void connect_to(struct connection *c) {
    struct sockaddr_in address = loopback(port);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address)) die("connect");
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    no_delay(c->fd);
    watch(epoll_fd, EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
}

static void reconnect(struct connection *c) {
    close(c->fd);
    c->in.start = c->in.end = c->out.start = c->out.end = c->body.start = c->body.end = 0;
    c->phase = IDLE;
    connect_to(c);
    reconnects++;
}

static void ask(struct connection *c) {
    c->phase = HEAD;
    c->events = c->is_done = 0;
    c->prompt_tokens = c->completion_tokens = -1;
    c->hash = 14695981039346656037u;
    under_way++;
    buffer_append(&c->out, request, request_size);
    c->sent_at = now_ns();
    if (buffer_write(&c->out, c->fd) < 0) return; /* The end of file that follows is counted where it is read. */
    if (buffer_size(&c->out)) watch(epoll_fd, EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLOUT, c);
}

static void ask_again(struct connection *c, int64_t now) {
    if (is_stream ? --c->streams_left > 0 : now < stop_at) ask(c);
}

static void note_usage(struct connection *c, const char *text, size_t size) {
    c->prompt_tokens = json_int(text, size, "\"prompt_tokens\"", -1);
    c->completion_tokens = json_int(text, size, "\"completion_tokens\"", -1);
}

static void add_to_hash(struct connection *c, const char *bytes, size_t size) {
    for (size_t i = 0; i < size; i++) c->hash = (c->hash ^ (unsigned char)bytes[i]) * 1099511628211u;
}

/* One data event. The next word of the list makes the next token; another word spoils the order, for good. */
static void take_event(struct connection *c, const char *text, size_t size, int64_t now) {
    if (size >= 12 && !memcmp(text, "data: [DONE]", 12)) c->is_done = 1;
    const char *usage = json_value(text, size, "\"usage\"");
    if (usage && *usage == '{') return note_usage(c, text, size);
    add_to_hash(c, text, size);
    const char *content = json_value(text, size, "\"content\"");
    if (!content || *content != '"' || content[1] == '"') return;
    const char *expected = WORD[c->events % WORDS];
    if (memcmp(content + 1, expected, strlen(expected)) || content[1 + strlen(expected)] != '"') {
        c->events = event_count + 1;
        return;
    }
    if (c->events == 0) series_add(&first_token, now - c->sent_at);
    series_add(&lateness, now - (c->sent_at + c->events * interval_ns));
    c->events++;
    events_total++;
}

static void take_events(struct connection *c, int64_t now) {
    const char *end;
    while (buffer_size(&c->body) && (end = memmem(buffer_bytes(&c->body), buffer_size(&c->body), "\n\n", 2))) {
        size_t size = (size_t)(end - buffer_bytes(&c->body)) + 2;
        take_event(c, buffer_bytes(&c->body), size, now);
        buffer_drop(&c->body, size);
    }
}

static void take_hash(uint64_t hash) {
    if (!common_hash) common_hash = hash;
    if (common_hash != hash) hashes_differ = 1;
}

/* The answer is over: count it, and ask again where that is the game. */
static void finish(struct connection *c) {
    int64_t now = now_ns();
    if (is_stream) take_hash(c->hash);
    else note_usage(c, buffer_bytes(&c->body), buffer_size(&c->body));
    int is_right = c->status == 200 && c->prompt_tokens > 0 && c->completion_tokens > 0;
    if (is_stream) is_right = is_right && c->events == event_count && c->is_done;
    answers++;
    wrong += !is_right;
    if (c->prompt_tokens > 0) prompt_tokens += c->prompt_tokens;
    if (c->completion_tokens > 0) completion_tokens += c->completion_tokens;
    series_add(&latency, now - c->sent_at);
    c->body.start = c->body.end = 0;
    c->phase = IDLE;
    under_way--;
    if (c->closes) reconnect(c);
    ask_again(c, now);
}

/* The head of the answer, once it is whole; 0 while it is not. */
static int take_head(struct connection *c) {
    const char *head = buffer_bytes(&c->in), *blank;
    if (!buffer_size(&c->in) || !(blank = memmem(head, buffer_size(&c->in), "\r\n\r\n", 4))) return 0;
    size_t size = (size_t)(blank - head) + 4;
    const char *length = header_value(head, size, "content-length");
    const char *connection = header_value(head, size, "connection");
    c->status = size > 12 ? atoi(head + 9) : 0;
    c->closes = connection && !strncasecmp(connection, "close", 5);
    c->left = length ? strtoul(length, NULL, 10) : 0;
    c->phase = header_value(head, size, "transfer-encoding") ? CHUNK_SIZE : WHOLE_BODY;
    buffer_drop(&c->in, size);
    return 1;
}

/* Take one line of the chunked framing off the input and read the hexadecimal number that it begins with; 0 while
   the line is not whole. An empty line is not given to strtol, which would go on into the bytes behind it. */
static int take_line(struct connection *c, size_t *value) {
    const char *line = buffer_bytes(&c->in), *end;
    if (!buffer_size(&c->in) || !(end = memchr(line, '\n', buffer_size(&c->in)))) return 0;
    *value = isxdigit((unsigned char)*line) ? strtoul(line, NULL, 16) : 0;
    buffer_drop(&c->in, (size_t)(end - line) + 1);
    return 1;
}

/* Move what is here of the body or chunk; 1 when that was the last of it. */
static int take_data(struct connection *c) {
    size_t count = buffer_size(&c->in) < c->left ? buffer_size(&c->in) : c->left;
    if (count) buffer_append(&c->body, buffer_bytes(&c->in), count);
    buffer_drop(&c->in, count);
    c->left -= count;
    return c->left == 0;
}

/* Take what has come as far as it goes. */
static void parse(struct connection *c, int64_t now) {
    size_t value;
    for (;;) switch (c->phase) {
        case IDLE: return;
        case HEAD:
            if (!take_head(c)) return;
            break;
        case WHOLE_BODY:
            if (!take_data(c)) return;
            if (is_stream) take_events(c, now);
            finish(c);
            return; /* Nothing can follow: the next request has only now been sent. */
        case CHUNK_SIZE:
            if (!take_line(c, &value)) return;
            c->left = value;
            c->phase = value ? CHUNK_DATA : TRAILER;
            break;
        case CHUNK_DATA:
            if (!take_data(c)) return;
            if (is_stream) take_events(c, now);
            c->phase = CHUNK_END;
            break;
        case CHUNK_END:
            if (!take_line(c, &value)) return;
            c->phase = CHUNK_SIZE;
            break;
        case TRAILER: /* No server here sends trailer fields, so the first line is the blank one. */
            if (!take_line(c, &value)) return;
            finish(c);
            return;
        }
}

static void on_event(struct connection *c, uint32_t events) {
    if (events & EPOLLOUT) {
        buffer_write(&c->out, c->fd);
        if (!buffer_size(&c->out)) watch(epoll_fd, EPOLL_CTL_MOD, c->fd, EPOLLIN, c);
    }
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    ssize_t count = buffer_read(&c->in, c->fd);
    if (count > 0) return parse(c, now_ns());
    if (count < 0 && errno == EAGAIN) return;
    int was_under_way = c->phase != IDLE;
    reconnect(c);
    if (!was_under_way) return;
    under_way--;
    answers++;
    wrong++;
    ask_again(c, now_ns());
}

static void serve_events(int timeout_ms) {
    struct epoll_event events[EVENTS_AT_ONCE];
    int count = epoll_wait(epoll_fd, events, EVENTS_AT_ONCE, timeout_ms);
    for (int i = 0; i < count; i++) on_event(events[i].data.ptr, events[i].events);
}

static const char *make_request(const char *key, size_t prompt_bytes) {
    static const char SENTENCE[] = "How much water goes over the crest of a weir in a dry summer? ";
    struct buffer body = {0}, whole = {0};
    char text[512];
    const char *start = "{\"model\":\"qwen3.5-9b\",\"messages\":[{\"role\":\"user\",\"content\":\"";
    buffer_append(&body, start, strlen(start));
    for (size_t i = 0; i < prompt_bytes; i++) buffer_append(&body, &SENTENCE[i % (sizeof SENTENCE - 1)], 1);
    snprintf(text, sizeof text, "\"}],\"max_tokens\":%ld%s}", is_stream ? event_count : 128,
             is_stream ? ",\"stream\":true,\"stream_options\":{\"include_usage\":true}" : "");
    buffer_append(&body, text, strlen(text));
    snprintf(text, sizeof text,
             "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n"
             "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
             port, key, buffer_size(&body));
    buffer_append(&whole, text, strlen(text));
    buffer_append(&whole, buffer_bytes(&body), buffer_size(&body));
    request_size = buffer_size(&whole);
    return buffer_bytes(&whole);
}

/* Start the streams one after the other, so that neither the starts nor the events come in bursts. Seven is prime
   to the numbers of streams in use, so each stream gets a phase of its own within the interval. */
static void start_spread(struct connection *connections, int count) {
    int64_t begin = now_ns();
    for (int i = 0; i < count; i++) {
        while (now_ns() < begin + interval_ns * SPREAD_INTERVALS * i / count) serve_events(0);
        ask(&connections[i]);
    }
}

static void report(double seconds) {
    printf("{\"answers\":%ld,\"wrong\":%ld,\"reconnects\":%ld,\"incomplete\":%ld,\"events\":%ld,\"seconds\":%.6f,"
           "\"prompt_tokens\":%ld,\"completion_tokens\":%ld,\"hash\":\"%s%016llx\"",
           answers, wrong, reconnects, incomplete, events_total, seconds, prompt_tokens, completion_tokens,
           hashes_differ ? "mixed " : "", (unsigned long long)common_hash);
    series_print("latency", &latency);
    series_print("first_token", &first_token);
    series_print("lateness", &lateness);
    printf("}\n");
}

int main(int argc, char **argv) {
    is_stream = argc == 10 && !strcmp(argv[5], "stream");
    if (!is_stream && !(argc == 7 && !strcmp(argv[5], "whole"))) return fprintf(stderr, "see the source\n"), 2;
    port = atoi(argv[1]);
    int count = atoi(argv[3]);
    event_count = is_stream ? atol(argv[6]) : 0;
    interval_ns = is_stream ? atol(argv[7]) * 1000 : 0;
    request = make_request(argv[2], strtoul(argv[4], NULL, 10));
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct connection *connections = calloc((size_t)count, sizeof *connections);
    if (!connections) die("calloc");
    for (int i = 0; i < count; i++) {
        connections[i].streams_left = is_stream ? atol(argv[8]) : 0;
        connect_to(&connections[i]);
    }
    int64_t begin = now_ns();
    stop_at = begin + atol(argv[argc - 1]) * 1000000;
    int64_t give_up_at = is_stream ? stop_at : stop_at + (int64_t)WAIT_MS_MAX * 1000000;
    if (is_stream) start_spread(connections, count);
    else for (int i = 0; i < count; i++) ask(&connections[i]);
    while (under_way && now_ns() < give_up_at) serve_events(50);
    incomplete = under_way;
    report((double)(now_ns() - begin) / 1e9);
    return 0;
}
