/*
 * User-Mode Linux 6.1 keeps 2.6 KiB of extended register state for each process it traces. On a CPU with AMX there are
 * 11 KiB, and the host's PTRACE_SETREGSET(NT_X86_XSTATE) takes all of them or nothing (EFAULT): the guest's first
 * process dies. This ptrace() takes UML's part, and adds what UML does not know of as the tracee has it.
 *
 * UML traces from one thread, so one buffer serves.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#define NT_X86_XSTATE 0x202
#define XSTATE_BV 512             /* where the XSAVE header says which components are not in their initial state */
#define BEFORE_AMX 0xffffUL       /* components 17 and 18 are AMX: the guests' processes do not use it */

static long (*next_ptrace)(int, int, void *, void *);
static char whole[65536] __attribute__((aligned(64)));

long ptrace(enum __ptrace_request request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    int pid = va_arg(arguments, int);
    void *address = va_arg(arguments, void *);
    void *data = va_arg(arguments, void *);
    va_end(arguments);
    if (!next_ptrace)
        next_ptrace = dlsym(RTLD_NEXT, "ptrace");
    if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE) {
        struct iovec *given = data, all = { whole, sizeof whole };
        long result = next_ptrace(PTRACE_GETREGSET, pid, address, &all);
        if (result < 0)
            return result;
        if (given->iov_len < all.iov_len) {
            memcpy(whole, given->iov_base, given->iov_len);
            *(unsigned long *)(whole + XSTATE_BV) &= BEFORE_AMX;
            return next_ptrace(PTRACE_SETREGSET, pid, address, &all);
        }
    }
    return next_ptrace(request, pid, address, data);
}
