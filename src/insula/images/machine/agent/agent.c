/* The first program of a machine that runs a container image: it sets the machine up, runs the image's process, and more
 * beside it, and carries their streams, signals and exit codes over one virtio-serial port.
 *
 * frames    FRAME = type (1 byte), 0, session (2 bytes), length (4 bytes), all little endian, then that many bytes.
 *           Session 0 is the image's process, others are execs. What each type means: drivers/microvm/frames.py.
 * windows   Neither side sends more of a stream than the other has granted, so that a stream nobody reads holds up no other.
 * records   A RUN frame holds strings that end in NUL, each `key=value`: see `read_records`.
 *
 * The image's process is pid 1 of a pid namespace of its own, in a mount namespace whose root is the shared folder `root`;
 * so signals, /proc and what an end of pid 1 means are as in a container. Everything is done by one thread: see `main`. */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define WINDOW (256 * 1024)
#define CHUNK 16384
#define LARGEST (4 * 1024 * 1024)
#define SESSIONS 256
#define MOST 4096 /* records of one kind */
#define ROOT "/run/root"
#define SHARE "/run/share"
#define GROUP "/sys/fs/cgroup/image"

extern char **environ;

struct config {
    char *args[MOST], *env[MOST], *mounts[MOST], *sysctls[MOST], *network[256], *rlimits[64];
    gid_t groups[MOST];
    int nargs, nenv, nmounts, nsysctls, nnetwork, nrlimits, ngroups;
    char *cwd, *hostname, *domainname, *memory, *pids;
    uid_t uid;
    gid_t gid;
    int tty, input, no_new_privileges, columns, rows;
    uint64_t capabilities, time_ns;
};

struct session {
    int used, id, tty, ended, code;
    pid_t pid;
    int in, out, err;          /* our ends; -1 when closed */
    uint32_t window;           /* how much output may still be sent */
    char *pending;             /* input that the process has not taken yet */
    uint32_t start, length;    /* of it */
    int finish;                /* close `in` when nothing is pending */
};

static struct session sessions[SESSIONS];
static int port = -1, own_pids = -1, its_pids = -1, its_mounts = -1, its_groups = -1;
static int group_made;

/* --- frames to the host */

static void put(const void *data, size_t length) {
    const char *at = data;
    while (length) {
        ssize_t done = write(port, at, length);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) reboot(RB_POWER_OFF);
        at += done;
        length -= done;
    }
}

static void frame(char type, int session, const void *data, uint32_t length) {
    static char buffer[8 + CHUNK];
    unsigned char head[8] = {type, 0, session & 255, session >> 8, length, length >> 8, length >> 16, length >> 24};
    memcpy(buffer, head, 8);
    if (length <= CHUNK) {
        memcpy(buffer + 8, data, length);
        put(buffer, 8 + length);
        return;
    }
    put(head, 8);
    put(data, length);
}

static void number_frame(char type, int session, uint32_t value) {
    unsigned char bytes[4] = {value, value >> 8, value >> 16, value >> 24};
    frame(type, session, bytes, 4);
}

static void failed(int session, int code, const char *words) {
    char text[1024];
    text[0] = code, text[1] = text[2] = text[3] = 0;
    snprintf(text + 4, sizeof text - 4, "%s", words);
    frame('F', session, text, 4 + strlen(text + 4));
}

/* --- small helpers */

static void write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return;
    if (write(fd, text, strlen(text)) < 0) fprintf(stderr, "%s: %s\n", path, strerror(errno));
    close(fd);
}

static void make_folders(char *path) {
    for (char *at = path + 1; *at; at++)
        if (*at == '/') *at = 0, mkdir(path, 0755), *at = '/';
    mkdir(path, 0755);
}

/* --- what a RUN frame says */

static void read_records(struct config *c, char *data, uint32_t length) {
    char *end = data + length;
    memset(c, 0, sizeof *c);
    c->cwd = "/";
    for (char *at = data; at < end && memchr(at, 0, end - at); at += strlen(at) + 1) {
        char *value = strchr(at, '=');
        if (!value) continue;
        size_t size = value++ - at;
#define IS(word) (size == strlen(word) && !memcmp(at, word, size))
#define PUSH(list, count) if (c->count < (int)(sizeof c->list / sizeof *c->list) - 1) c->list[c->count++]
        if (IS("arg")) { PUSH(args, nargs) = value; }
        else if (IS("env")) { PUSH(env, nenv) = value; }
        else if (IS("mount")) { PUSH(mounts, nmounts) = value; }
        else if (IS("sysctl")) { PUSH(sysctls, nsysctls) = value; }
        else if (IS("card") || IS("address") || IS("route")) { PUSH(network, nnetwork) = at; }
        else if (IS("rlimit")) { PUSH(rlimits, nrlimits) = value; }
        else if (IS("group")) { PUSH(groups, ngroups) = strtoul(value, 0, 10); }
        else if (IS("cwd")) c->cwd = value;
        else if (IS("hostname")) c->hostname = value;
        else if (IS("domainname")) c->domainname = value;
        else if (IS("memory")) c->memory = value;
        else if (IS("pids")) c->pids = value;
        else if (IS("uid")) c->uid = strtoul(value, 0, 10);
        else if (IS("gid")) c->gid = strtoul(value, 0, 10);
        else if (IS("tty")) c->tty = 1;
        else if (IS("input")) c->input = 1;
        else if (IS("no_new_privileges")) c->no_new_privileges = 1;
        else if (IS("columns")) c->columns = atoi(value);
        else if (IS("rows")) c->rows = atoi(value);
        else if (IS("capabilities")) c->capabilities = strtoull(value, 0, 16);
        else if (IS("time_ns")) c->time_ns = strtoull(value, 0, 10);
    }
}

/* --- the machine: once, before the image's process */

static void set_up(int sock, const char *name) {
    struct ifreq request = {0};
    snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
    ioctl(sock, SIOCGIFFLAGS, &request);
    request.ifr_flags |= IFF_UP;
    ioctl(sock, SIOCSIFFLAGS, &request);
}

/* Find the card with this hardware address and give it its name. */
static int name_card(int sock, const char *mac, const char *name) {
    struct if_nameindex *all = if_nameindex();
    int found = 0;
    for (struct if_nameindex *each = all; each && each->if_index && !found; each++) {
        struct ifreq request = {0};
        char text[18];
        snprintf(request.ifr_name, IFNAMSIZ, "%s", each->if_name);
        if (ioctl(sock, SIOCGIFHWADDR, &request)) continue;
        unsigned char *b = (unsigned char *)request.ifr_hwaddr.sa_data;
        snprintf(text, sizeof text, "%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5]);
        if (strcmp(text, mac)) continue;
        found = 1;
        if (!strcmp(each->if_name, name)) break;
        snprintf(request.ifr_newname, IFNAMSIZ, "%s", name);
        ioctl(sock, SIOCSIFNAME, &request);
    }
    if_freenameindex(all);
    return found;
}

static void set_address(int sock, int sock6, const char *name, const char *text, int prefix) {
    struct ifreq request = {0};
    struct sockaddr_in *place = (struct sockaddr_in *)&request.ifr_addr;
    struct { struct in6_addr address; uint32_t prefix; int index; } request6 = {.prefix = prefix, .index = if_nametoindex(name)};
    snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
    place->sin_family = AF_INET;
    if (inet_pton(AF_INET, text, &place->sin_addr) == 1) {
        if (ioctl(sock, SIOCSIFADDR, &request)) fprintf(stderr, "address %s: %s\n", text, strerror(errno));
        place->sin_addr.s_addr = htonl(prefix ? 0xFFFFFFFFu << (32 - prefix) : 0);
        ioctl(sock, SIOCSIFNETMASK, &request);
    } else if (inet_pton(AF_INET6, text, &request6.address) == 1) {
        if (ioctl(sock6, SIOCSIFADDR, &request6)) fprintf(stderr, "address %s: %s\n", text, strerror(errno));
    }
}

/* A default route; a gateway of zeros stands for none. */
static void set_route(int sock, int sock6, const char *name, const char *text, int metric) {
    struct rtentry route = {.rt_flags = RTF_UP, .rt_metric = metric + 1, .rt_dev = (char *)name};
    struct in6_rtmsg route6 = {.rtmsg_flags = RTF_UP, .rtmsg_metric = metric, .rtmsg_ifindex = if_nametoindex(name)};
    struct sockaddr_in *gateway = (struct sockaddr_in *)&route.rt_gateway;
    route.rt_dst.sa_family = route.rt_genmask.sa_family = gateway->sin_family = AF_INET;
    int failed_ = 0;
    if (inet_pton(AF_INET, text, &gateway->sin_addr) == 1) {
        if (gateway->sin_addr.s_addr) route.rt_flags |= RTF_GATEWAY;
        failed_ = ioctl(sock, SIOCADDRT, &route);
    } else if (inet_pton(AF_INET6, text, &route6.rtmsg_gateway) == 1) {
        if (!IN6_IS_ADDR_UNSPECIFIED(&route6.rtmsg_gateway)) route6.rtmsg_flags |= RTF_GATEWAY;
        failed_ = ioctl(sock6, SIOCADDRT, &route6);
    }
    if (failed_ && errno != EEXIST) fprintf(stderr, "route by %s: %s\n", text, strerror(errno));
}

/* `card=NAME MAC MTU`, `address=NAME ADDRESS PREFIX`, `route=NAME GATEWAY METRIC`. */
static void set_network(const char *record) {
    char kind[16], name[IFNAMSIZ], text[64], path[128];
    int number_;
    if (sscanf(record, "%15[a-z]=%15s %63s %d", kind, name, text, &number_) != 4) return;
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), sock6 = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (!strcmp(kind, "card")) {
        struct ifreq request = {.ifr_mtu = number_};
        for (int tries = 0; !name_card(sock, text, name) && tries < 1000; tries++) usleep(1000);
        snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
        ioctl(sock, SIOCSIFMTU, &request);
        snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/%s/accept_dad", name);
        write_file(path, "0"); /* whoever chose the address knows that it is free */
        set_up(sock, name);
    }
    if (!strcmp(kind, "address")) set_address(sock, sock6, name, text, number_);
    if (!strcmp(kind, "route")) set_route(sock, sock6, name, text, number_);
    close(sock);
    close(sock6);
}

static void set_sysctl(const char *setting) {
    char path[512], *equals;
    snprintf(path, sizeof path, "/proc/sys/%s", setting);
    if (!(equals = strchr(path, '='))) return;
    *equals = 0;
    for (char *at = path + 10; *at; at++)
        if (*at == '.') *at = '/';
    write_file(path, strchr(setting, '=') + 1);
}

static void make_group(const struct config *c) {
    group_made = !mkdir(GROUP, 0755) || errno == EEXIST;
    if (c->memory) write_file(GROUP "/memory.max", c->memory);
    if (c->pids) write_file(GROUP "/pids.max", c->pids);
}

static void make_devices(void) {
    static const struct { const char *name; int minor; } memory[] = {
        {"null", 3}, {"zero", 5}, {"full", 7}, {"random", 8}, {"urandom", 9}};
    static const char *links[][2] = {{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
        {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"}, {"/proc/kcore", "core"}};
    char path[64];
    mount("tmpfs", ROOT "/dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k");
    for (int i = 0; i < 5; i++) {
        snprintf(path, sizeof path, ROOT "/dev/%s", memory[i].name);
        mknod(path, S_IFCHR | 0666, makedev(1, memory[i].minor));
    }
    mknod(ROOT "/dev/tty", S_IFCHR | 0666, makedev(5, 0));
    for (int i = 0; i < 6; i++) {
        snprintf(path, sizeof path, ROOT "/dev/%s", links[i][1]);
        if (symlink(links[i][0], path)) continue;
    }
    mkdir(ROOT "/dev/pts", 0755);
    mkdir(ROOT "/dev/mqueue", 0755);
    mkdir(ROOT "/dev/shm", 0755);
    mount("devpts", ROOT "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5");
    mount("mqueue", ROOT "/dev/mqueue", "mqueue", MS_NOSUID | MS_NOEXEC | MS_NODEV, "");
}

/* `TARGET<TAB>tmpfs<TAB>FLAGS<TAB>OPTIONS`, or `TARGET<TAB>bind<TAB>SOURCE` for what is to appear below /dev. */
static int set_mount(char *words) {
    char *target = strsep(&words, "\t"), *kind = strsep(&words, "\t"), *third = strsep(&words, "\t"), path[8192];
    if (!third) return 0;
    snprintf(path, sizeof path, ROOT "%s", target);
    if (!strncmp(target, "/dev/", 5) && strcmp(kind, "bind")) make_folders(path);
    if (!strcmp(kind, "tmpfs")) return mount("tmpfs", path, "tmpfs", strtoul(third, 0, 10), words);
    char source[256];
    struct stat info;
    snprintf(source, sizeof source, SHARE "/%s", third);
    if (stat(source, &info)) return -1;
    if (S_ISDIR(info.st_mode)) make_folders(path);
    else close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
    return mount(source, path, NULL, MS_BIND, NULL);
}

/* Returns what could not be done, empty when all went well. */
static const char *prepare(struct config *c) {
    static char words[9000];
    if (c->time_ns) {
        struct timespec now = {c->time_ns / 1000000000, c->time_ns % 1000000000};
        clock_settime(CLOCK_REALTIME, &now);
    }
    if (mount("share", SHARE, "virtiofs", 0, "") || mount(SHARE "/root", ROOT, NULL, MS_BIND | MS_REC, NULL)) {
        snprintf(words, sizeof words, "the root file system cannot be mounted: %s", strerror(errno));
        return words;
    }
    if (c->hostname) sethostname(c->hostname, strlen(c->hostname));
    if (c->domainname) setdomainname(c->domainname, strlen(c->domainname));
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    set_up(sock, "lo");
    close(sock);
    for (int i = 0; i < c->nnetwork; i++) set_network(c->network[i]);
    for (int i = 0; i < c->nsysctls; i++) set_sysctl(c->sysctls[i]);
    make_group(c);
    make_devices();
    for (int i = 0; i < c->nmounts; i++) {
        char *target = c->mounts[i];
        if (set_mount(c->mounts[i])) {
            snprintf(words, sizeof words, "%s cannot be mounted: %s", target, strerror(errno));
            return words;
        }
    }
    return "";
}

/* --- processes: what a child does between fork and exec. `die` tells the parent why there will be no exec. */

static int report;

static void die(int code, const char *what, const char *why) {
    char text[1024];
    text[0] = code;
    int length = snprintf(text + 1, sizeof text - 1, "%s%s", what, why);
    if (write(report, text, 1 + (length < 1000 ? length : 1000)) < 0) _exit(code);
    _exit(code);
}

static void enter_image(int first) {
    if (group_made) write_file(GROUP "/cgroup.procs", "0");
    if (!first) {
        if (setns(its_groups, CLONE_NEWCGROUP) || setns(its_mounts, CLONE_NEWNS)) die(126, "cannot enter the namespaces: ", strerror(errno));
        return;
    }
    if (unshare(CLONE_NEWNS | CLONE_NEWCGROUP) || mount("proc", ROOT "/proc", "proc", MS_NOSUID | MS_NOEXEC | MS_NODEV, "") ||
        mount("sysfs", ROOT "/sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NOEXEC | MS_NODEV, ""))
        die(126, "cannot make the mount namespace: ", strerror(errno));
    mount("cgroup2", ROOT "/sys/fs/cgroup", "cgroup2", MS_RDONLY | MS_NOSUID | MS_NOEXEC | MS_NODEV, "");
    if (chdir(ROOT) || mount(".", "/", NULL, MS_MOVE, NULL) || chroot("."))
        die(126, "cannot enter the root file system: ", strerror(errno));
}

static void set_limits(const struct config *c) {
    for (int i = 0; i < c->nrlimits; i++) {
        int which;
        unsigned long long soft, hard;
        if (sscanf(c->rlimits[i], "%d:%llu:%llu", &which, &soft, &hard) != 3) continue;
        struct rlimit limit = {soft, hard};
        if (setrlimit(which, &limit)) die(126, "error setting rlimits: ", strerror(errno));
    }
}

static void become(const struct config *c) {
    for (int cap = 0; cap < 64; cap++)
        if (!(c->capabilities >> cap & 1)) prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
    if (setgroups(c->ngroups, c->groups) || setgid(c->gid) || setuid(c->uid)) die(126, "cannot set the user: ", strerror(errno));
    struct { uint32_t version; int pid; } head = {0x20080522, 0};
    uint32_t low = c->capabilities, high = c->capabilities >> 32;
    struct { uint32_t effective, permitted, inheritable; } sets[2] = {{low, low, 0}, {high, high, 0}};
    if (c->uid == 0 && syscall(SYS_capset, &head, sets)) die(126, "cannot set the capabilities: ", strerror(errno));
    if (c->no_new_privileges) prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    umask(022);
}

static void take_streams(const struct config *c, const int ends[3]) {
    sigset_t none;
    setsid();
    for (int fd = 0; fd < 3; fd++) dup2(ends[fd], fd);
    if (c->tty) {
        fchown(0, c->uid, -1);
        ioctl(0, TIOCSCTTY, 0);
    }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (int signal_ = 1; signal_ < 32; signal_++) signal(signal_, SIG_DFL);
}

static void run_child(struct config *c, int first, const int ends[3]) {
    char cwd[4096], words[600];
    take_streams(c, ends);
    enter_image(first);
    snprintf(cwd, sizeof cwd, "%s", c->cwd);
    make_folders(cwd);
    set_limits(c);
    become(c);
    if (chdir(cwd)) {
        snprintf(words, sizeof words, "chdir to cwd (\"%.400s\") set in config.json failed: ", cwd);
        die(errno == ENOENT ? 127 : 126, words, errno == ENOENT ? "no such file or directory" : strerror(errno));
    }
    environ = c->env;
    execvp(c->args[0], c->args);
    snprintf(words, sizeof words, "exec: \"%.400s\": ", c->args[0]);
    if (errno == ENOENT && !strchr(c->args[0], '/')) die(127, words, "executable file not found in $PATH");
    if (errno == ENOENT) {
        snprintf(words, sizeof words, "exec: \"%.250s\": stat %.250s: ", c->args[0], c->args[0]);
        die(127, words, "no such file or directory");
    }
    die(126, words, errno == EACCES ? "permission denied" : errno == ENOEXEC ? "exec format error" : strerror(errno));
}

/* --- sessions */

static struct session *find(int id) {
    for (int i = 0; i < SESSIONS; i++)
        if (sessions[i].used && sessions[i].id == id) return &sessions[i];
    return NULL;
}

static void shut(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

static void drop(struct session *s) {
    shut(&s->in);
    shut(&s->out);
    shut(&s->err);
    free(s->pending);
    memset(s, 0, sizeof *s);
}

static void set_size(int fd, int columns, int rows) {
    struct winsize size = {.ws_col = columns, .ws_row = rows};
    if (columns && rows) ioctl(fd, TIOCSWINSZ, &size);
}

/* Our ends go into the session, the child's into `ends`. */
static int open_streams(struct session *s, const struct config *c, int ends[3]) {
    int in[2], out[2], err[2];
    if (c->tty) {
        int master = open(ROOT "/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC), unlocked = 0;
        if (master < 0 || ioctl(master, TIOCSPTLCK, &unlocked)) return -1;
        int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
        set_size(master, c->columns, c->rows);
        s->in = fcntl(master, F_DUPFD_CLOEXEC, 3);
        s->out = master;
        ends[0] = ends[1] = ends[2] = slave;
        return slave < 0 ? -1 : 0;
    }
    if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC) || pipe2(in, O_CLOEXEC)) return -1;
    s->in = in[1], s->out = out[0], s->err = err[0];
    ends[0] = in[0], ends[1] = out[1], ends[2] = err[1];
    if (!c->input) shut(&s->in);
    return 0;
}

/* Fork into the image's pid namespace; the pid returned is ours. */
static pid_t fork_inside(int first) {
    if (first ? unshare(CLONE_NEWPID) : setns(its_pids, CLONE_NEWPID)) return -1;
    pid_t pid = fork();
    if (pid) setns(own_pids, CLONE_NEWPID);
    return pid;
}

/* What the child says before it becomes its program: nothing, or why it cannot. */
static int heard(int fd, char *text, int size) {
    int length = 0, done;
    while (length < size - 1 && ((done = read(fd, text + length, size - 1 - length)) > 0 || (done < 0 && errno == EINTR)))
        length += done > 0 ? done : 0;
    text[length] = 0;
    return length;
}

static void remember_namespaces(pid_t pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/pid", pid);
    its_pids = open(path, O_RDONLY | O_CLOEXEC);
    snprintf(path, sizeof path, "/proc/%d/ns/mnt", pid);
    its_mounts = open(path, O_RDONLY | O_CLOEXEC);
    snprintf(path, sizeof path, "/proc/%d/ns/cgroup", pid);
    its_groups = open(path, O_RDONLY | O_CLOEXEC);
}

static void start(struct session *s, struct config *c) {
    int ends[3] = {-1, -1, -1}, pipe_[2] = {-1, -1}, first = s->id == 0;
    char text[1024];
    if (pipe2(pipe_, O_CLOEXEC) || open_streams(s, c, ends)) {
        failed(s->id, 126, strerror(errno));
        drop(s);
        return;
    }
    report = pipe_[1];
    s->pid = fork_inside(first);
    if (!s->pid) run_child(c, first, ends);
    int trouble = errno;
    close(pipe_[1]);
    close(ends[0]);
    if (!c->tty) close(ends[1]), close(ends[2]);
    int length = s->pid < 0 ? 0 : heard(pipe_[0], text, sizeof text);
    close(pipe_[0]);
    if (s->pid < 0 || length) {
        failed(s->id, length ? text[0] : 126, length ? text + 1 : strerror(trouble));
        drop(s);
        return;
    }
    if (first) remember_namespaces(s->pid);
    for (int *fd = &s->in; fd <= &s->err; fd++)
        if (*fd >= 0) fcntl(*fd, F_SETFL, O_NONBLOCK | fcntl(*fd, F_GETFL));
    number_frame('B', s->id, s->pid);
}

static void run(int id, char *data, uint32_t length) {
    static struct config c;
    struct session *s = NULL;
    read_records(&c, data, length);
    for (int i = 0; i < SESSIONS && !s; i++)
        if (!sessions[i].used) s = &sessions[i];
    if (!s || find(id) || !c.nargs || (id && its_pids < 0)) {
        failed(id, 126, s ? "the machine is not ready for it" : "the machine has too many processes from outside");
        return;
    }
    if (id == 0) {
        const char *trouble = prepare(&c);
        if (*trouble) {
            failed(0, 128, trouble);
            return;
        }
    }
    *s = (struct session){.used = 1, .id = id, .tty = c.tty, .in = -1, .out = -1, .err = -1, .window = WINDOW};
    s->pending = malloc(WINDOW);
    start(s, &c);
}

static void take_input(struct session *s, const char *data, uint32_t length) {
    if (!length) s->finish = 1;
    if (s->in < 0) { /* nobody reads it: as if it were read, so that the sender goes on */
        if (length) number_frame('V', s->id, length);
        return;
    }
    if (s->start + s->length + length > WINDOW) memmove(s->pending, s->pending + s->start, s->length), s->start = 0;
    if (s->length + length > WINDOW) return;
    memcpy(s->pending + s->start + s->length, data, length);
    s->length += length;
}

static void feed(struct session *s) {
    while (s->in >= 0 && s->length) {
        ssize_t done = write(s->in, s->pending + s->start, s->length);
        if (done < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (done < 0) {
            done = s->length;
            shut(&s->in);
        }
        s->start += done;
        s->length -= done;
        number_frame('V', s->id, done);
    }
    if (s->finish && !s->length && !s->tty) shut(&s->in);
}

static void drain(struct session *s, int *fd, char type) {
    char data[CHUNK];
    ssize_t done = read(*fd, data, s->window < CHUNK ? s->window : CHUNK);
    if (done > 0) {
        s->window -= done;
        frame(type, s->id, data, done);
    } else if (!done || (errno != EAGAIN && errno != EINTR)) {
        shut(fd);
    }
}

static void reap(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        for (int i = 0; i < SESSIONS; i++)
            if (sessions[i].used && sessions[i].pid == pid) {
                sessions[i].ended = 1;
                sessions[i].code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
            }
}

/* The plug is pulled after the last frame: what was written through mappings must be with the host by then. */
static void settle(void) {
    char text[8192], *dirty;
    int fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC), length = read(fd, text, sizeof text - 1);
    close(fd);
    text[length > 0 ? length : 0] = 0;
    if (!(dirty = strstr(text, "\nDirty:")) || atoi(dirty + 7) || atoi(strstr(dirty, "Writeback:") + 10)) sync();
}

/* An exec ends with its process, like `docker exec`, though something may have inherited its output; what is there is sent
 * first. The image's process takes all others with it, so its output has an end of its own. */
static int finished(struct session *s) {
    struct pollfd waiting[2] = {{s->out, POLLIN}, {s->err, POLLIN}};
    if (!s->ended) return 0;
    if (s->out < 0 && s->err < 0) return 1;
    return s->id && !poll(waiting, 2, 0);
}

/* --- a list of processes: for each `pid=…`, `uid=…`, `up=…` (the machine, in seconds), `stat=…` (proc(5)) and `cmd=…`, NUL after each */

static int slurp(const char *folder, const char *pid, const char *name, char *into, int size) {
    char path[300];
    snprintf(path, sizeof path, "%s/%s/%s", folder, pid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC), length = fd < 0 ? -1 : read(fd, into, size - 1);
    if (fd >= 0) close(fd);
    into[length > 0 ? length : 0] = 0;
    return length;
}

static void list_processes(int id) {
    char folder[64], stat_[1024], status[4096], command[2048], record[8192];
    struct session *s = find(0);
    struct timespec up;
    clock_gettime(CLOCK_BOOTTIME, &up);
    snprintf(folder, sizeof folder, "/proc/%d/root/proc", s ? s->pid : -1);
    DIR *all = opendir(folder);
    for (struct dirent *each; all && (each = readdir(all));) {
        if (each->d_name[0] < '0' || each->d_name[0] > '9') continue;
        if (slurp(folder, each->d_name, "stat", stat_, sizeof stat_) <= 0) continue;
        slurp(folder, each->d_name, "status", status, sizeof status);
        int length = slurp(folder, each->d_name, "cmdline", command, sizeof command);
        for (int i = 0; i < length - 1; i++)
            if (!command[i]) command[i] = ' ';
        char *uid = strstr(status, "\nUid:");
        length = snprintf(record, sizeof record, "pid=%s%cuid=%d%cup=%ld%cstat=%s%ccmd=%s", each->d_name, 0,
                          uid ? atoi(uid + 5) : 0, 0, (long)up.tv_sec, 0, stat_, 0, command);
        frame('P', id, record, length + 1);
    }
    if (all) closedir(all);
    frame('P', id, "", 0);
}

/* --- frames from the host */

static uint32_t number(const unsigned char *at) { return at[0] | at[1] << 8 | at[2] << 16 | (uint32_t)at[3] << 24; }

static void handle(char type, int id, char *data, uint32_t length) {
    struct session *s = find(id);
    uint32_t value = length >= 4 ? number((unsigned char *)data) : 0;
    if (type == 'R') run(id, data, length);
    if (type == 'P') list_processes(id);
    if (!s) return;
    if (type == 'I') take_input(s, data, length);
    if (type == 'W') s->window += value;
    if (type == 'S' && !s->ended) kill(s->pid, value);
    if (type == 'Z' && s->tty && s->out >= 0) set_size(s->out, value & 0xFFFF, value >> 16);
    if (type == 'C') { /* whoever had it run has gone: it goes on with nobody to read it */
        s->finish = 1;
        s->window = 0;
        shut(&s->out);
        shut(&s->err);
    }
}

static void receive(void) {
    static char *buffer;
    static uint32_t filled, size;
    if (size - filled < CHUNK) buffer = realloc(buffer, size = filled + 4 * CHUNK);
    ssize_t done = read(port, buffer + filled, size - filled - 1);
    if (done <= 0) {
        if (done < 0 && (errno == EINTR || errno == EAGAIN)) return;
        usleep(10000);
        return;
    }
    filled += done;
    uint32_t at = 0;
    while (filled - at >= 8) {
        unsigned char *head = (unsigned char *)buffer + at;
        uint32_t length = number(head + 4);
        if (length > LARGEST) reboot(RB_POWER_OFF);
        if (filled - at - 8 < length) break;
        char after = buffer[at + 8 + length];
        buffer[at + 8 + length] = 0;
        handle(head[0], head[2] | head[3] << 8, buffer + at + 8, length);
        buffer[at + 8 + length] = after;
        at += 8 + length;
    }
    memmove(buffer, buffer + at, filled -= at);
}

/* --- the beginning */

static void load_modules(void) {
    FILE *list = fopen("/modules/order", "re");
    char name[128], path[160];
    while (list && fscanf(list, "%127s", name) == 1) {
        snprintf(path, sizeof path, "/modules/%s.ko", name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST) fprintf(stderr, "%s: %s\n", path, strerror(errno));
        close(fd);
    }
    if (list) fclose(list);
}

static void open_port(void) {
    for (int tries = 0; tries < 20000 && port < 0; tries++, usleep(500)) {
        for (int i = 0; i < 8 && port < 0; i++) {
            char path[32];
            snprintf(path, sizeof path, "/dev/vport%dp1", i);
            port = open(path, O_RDWR | O_CLOEXEC);
        }
    }
    struct pollfd waiting = {port, POLLOUT};
    for (int tries = 0; tries < 20000 && poll(&waiting, 1, 0) >= 0 && (waiting.revents & POLLHUP); tries++) usleep(500);
}

static void begin(void) {
    umask(0);
    mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=755");
    mount("proc", "/proc", "proc", 0, "");
    mount("sysfs", "/sys", "sysfs", 0, "");
    mkdir("/run", 0755), mkdir(ROOT, 0755), mkdir(SHARE, 0755);
    load_modules();
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NOEXEC | MS_NODEV, "");
    write_file("/sys/fs/cgroup/cgroup.subtree_control", "+pids");
    write_file("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
    own_pids = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
    signal(SIGPIPE, SIG_IGN);
    open_port();
    frame('H', 0, "1", 1);
}

int main(void) {
    static struct pollfd waiting[2 + 3 * SESSIONS];
    sigset_t children;
    if (getpid() != 1) return fprintf(stderr, "this is the first program of a machine, not for any other place\n"), 1;
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    sigprocmask(SIG_BLOCK, &children, NULL);
    int ended = signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK);
    begin();
    for (;;) {
        int count = 2;
        waiting[0] = (struct pollfd){port, POLLIN};
        waiting[1] = (struct pollfd){ended, POLLIN};
        for (int i = 0; i < SESSIONS; i++) {
            struct session *s = &sessions[i];
            if (!s->used) continue;
            if (s->out >= 0 && s->window) waiting[count++] = (struct pollfd){s->out, POLLIN};
            if (s->err >= 0 && s->window) waiting[count++] = (struct pollfd){s->err, POLLIN};
            if (s->in >= 0 && s->length) waiting[count++] = (struct pollfd){s->in, POLLOUT};
        }
        poll(waiting, count, -1);
        struct signalfd_siginfo told;
        if (waiting[1].revents && read(ended, &told, sizeof told) > 0) reap();
        if (waiting[0].revents) receive(); /* first: an end of input that comes alone is carried out below */
        for (int i = 0; i < SESSIONS; i++) {
            struct session *s = &sessions[i];
            if (!s->used) continue;
            feed(s);
            if (s->out >= 0 && s->window) drain(s, &s->out, 'O');
            if (s->err >= 0 && s->window) drain(s, &s->err, 'E');
            if (finished(s)) {
                if (!s->id) settle();
                number_frame('X', s->id, s->code);
                drop(s);
            }
        }
    }
}
