"""The default seccomp profile: which system calls a container may make.

It admits what Docker's default profile admits (28; its manual, "Seccomp security profiles for Docker"), written as tables of our
own: calls that are always allowed, calls that a capability opens, calls of one architecture, calls allowed for certain
arguments only. Everything else fails with EPERM, `clone3` without CAP_SYS_ADMIN with ENOSYS so that C libraries fall back
to `clone`, whose flags can be inspected. A name that the runtime's libseccomp does not know is skipped by runc and crun.
The one difference: programs of the x32 ABI, which distributions do not build and kernels have turned off, are not
admitted; each architecture costs runc 4 ms at every start. The result is the `linux.seccomp` object of the OCI runtime
specification.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from insula.errors import Invalid

EPERM, ENOSYS = 1, 38
AF_VSOCK = 40
NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)  # Linux, 32 bits, UNAME26, both, ask

ALWAYS = """
accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 recvmsg send
sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair

access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync flock
fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 inotify_add_watch
inotify_init inotify_init1 inotify_rm_watch ioctl lchown lchown32 link linkat _llseek lseek lstat lstat64 mkdir mkdirat mknod
mknodat name_to_handle_at newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead
readlink readlinkat readv rename renameat renameat2 rmdir sendfile sendfile64 splice stat stat64 statfs statfs64 statx
symlink symlinkat sync sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64
utimes vmsplice write writev cachestat

fgetxattr flistxattr fremovexattr fsetxattr getxattr lgetxattr listxattr llistxattr lremovexattr lsetxattr removexattr setxattr
getxattrat listxattrat removexattrat setxattrat

_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
eventfd2 io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit pipe pipe2 poll ppoll
ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4

brk madvise membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap mseal msync munlock
munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease remap_file_pages map_shadow_stack

adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create timer_delete timer_getoverrun
timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64
timerfd_settime timerfd_settime64 times

capget capset execve execveat exit exit_group fork futex futex_time64 futex_requeue futex_wait futex_waitv futex_wake
get_robust_list get_thread_area getcpu getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getpgid getpgrp
getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid gettid getuid
getuid32 ioprio_get ioprio_set kill pause pidfd_open pidfd_send_signal prctl prlimit64 restart_syscall rseq rt_sigaction
rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64
rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
sched_setscheduler sched_yield seccomp set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid
setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid
setresuid32 setreuid setreuid32 setrlimit setsid setuid setuid32 sigaltstack sigprocmask sigreturn sysinfo tgkill tkill
ugetrlimit uname vfork wait4 waitid waitpid landlock_add_rule landlock_create_ruleset landlock_restrict_self

ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl
msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget

process_vm_readv process_vm_writev ptrace
"""

BY_CAPABILITY = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr "
    "lsm_list_modules lsm_set_self_attr listmount mount mount_setattr move_mount open_tree perf_event_open quotactl "
    "quotactl_fd setdomainname sethostname setns statmount syslog umount umount2 unshare",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}

ARCHITECTURES = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
}
BY_ARCHITECTURE = {
    "x86_64": "arch_prctl modify_ldt",
    "aarch64": "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
}


def default_profile(capabilities: Collection[str], machine: str) -> dict[str, Any]:
    """The profile for a process with these capabilities on this machine (`uname -m`)."""
    names = set(ALWAYS.split()) | set(BY_ARCHITECTURE.get(machine, "").split())
    for capability, opened in BY_CAPABILITY.items():
        if capability in capabilities:
            names.update(opened.split())
    rules = [_allow(sorted(names)), _allow(["socket"], (0, AF_VSOCK, "SCMP_CMP_NE"))]
    rules += [_allow(["personality"], (0, value, "SCMP_CMP_EQ")) for value in PERSONALITIES]
    if "CAP_SYS_ADMIN" not in capabilities:
        masked = {"index": 0, "value": NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
        rules.append({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [masked]})
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS})
    profile: dict[str, Any] = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": EPERM, "syscalls": rules}
    if machine in ARCHITECTURES:
        profile["architectures"] = list(ARCHITECTURES[machine])
    return profile


def _allow(names: list[str], argument: tuple[int, int, str] | None = None) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": "SCMP_ACT_ALLOW"}
    if argument:
        rule["args"] = [dict(zip(("index", "value", "op"), argument, strict=True))]
    return rule


# --- profiles that users bring -----------------------------------------------------------------------------------

DOCKER_ARCHITECTURES = {"x86_64": ("amd64", "x86"), "aarch64": ("arm64", "arm")}
PASSED_ON = ("defaultErrnoRet", "flags", "listenerPath", "listenerMetadata")


def resolve_profile(text: str, capabilities: Collection[str], machine: str) -> dict[str, Any]:
    """A profile in Docker's JSON form (`archMap`, and `includes`/`excludes` at each rule) or in OCI's own, made fit for this
    container. Raises Invalid when it is neither."""
    try:
        profile = msgspec.json.decode(text)
    except msgspec.DecodeError as fault:
        raise Invalid(f"Decoding seccomp profile failed: {fault}", field="security.seccomp") from fault
    if not isinstance(profile, dict) or not isinstance(profile.get("defaultAction"), str):
        raise Invalid("A seccomp profile is a JSON object with a defaultAction.", field="security.seccomp")
    rules = [_rule(rule) for rule in profile.get("syscalls") or () if _applies(rule, capabilities, machine)]
    result = {"defaultAction": profile["defaultAction"], "syscalls": rules}
    result |= {name: profile[name] for name in PASSED_ON if name in profile}
    if architectures := profile.get("architectures") or _mapped(profile.get("archMap") or (), machine):
        result["architectures"] = architectures
    return result


def _rule(rule: Mapping[str, Any]) -> dict[str, Any]:
    names = rule.get("names") or [rule["name"]]
    kept = {key: rule[key] for key in ("action", "errnoRet", "args") if rule.get(key) is not None}
    return {"names": list(names), **kept}


def _applies(rule: object, capabilities: Collection[str], machine: str) -> bool:
    if not isinstance(rule, dict) or not (rule.get("names") or rule.get("name")) or "action" not in rule:
        raise Invalid(f"A seccomp rule needs names and an action: {rule!r:.200}", field="security.seccomp")
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    ours = set(DOCKER_ARCHITECTURES.get(machine, ()))
    if (arches := includes.get("arches")) and not ours & set(arches):
        return False
    if ours & set(excludes.get("arches") or ()):
        return False
    if any(capability not in capabilities for capability in includes.get("caps") or ()):
        return False
    return not any(capability in capabilities for capability in excludes.get("caps") or ())


def _mapped(entries: Collection[Mapping[str, Any]], machine: str) -> list[str]:
    native = ARCHITECTURES.get(machine, ("",))[0]
    for entry in entries:
        if entry.get("architecture") == native:
            return [native, *(entry.get("subArchitectures") or ())]
    return []
