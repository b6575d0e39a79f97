/* The guest that the accelerator probe runs, as a ROM of 64 KiB (see probe.py, which carries the assembled bytes).

   A host may offer a /dev/kvm that creates machines but runs ordinary guests one emulated instruction at a time, or not
   at all. So this guest does what every operating system does on its way up, and enough of it that emulation misses
   the probe's deadline: real mode, protected mode, long mode with paging, a page fault that is repaired, CPUID, the time
   stamp counter, a byte on the serial line, and a timer interrupt that wakes a halted CPU. Then it ends QEMU through
   isa-debug-exit with 0x21.

   Assemble:  as --64 -o g.o probe_guest.S && ld -m elf_x86_64 -Ttext=0xf0000 -e start -o g.elf g.o
              objcopy -O binary -j .text g.elf g.bin */

        .set    PML4, 0x1000
        .set    PDPT, 0x2000
        .set    PD_LOW, 0x3000
        .set    PD_APIC, 0x4000
        .set    IDT, 0x5000
        .set    STACK, 0x7ff0
        .set    SLOW_LOOP, 500000       /* iterations: half a millisecond natively, a second and more when emulated */
        .set    FAST_LOOP, 10000000
        .set    EXIT_PORT, 0x501
        .set    SERIAL, 0x3f8

        .text
        .code16
        .globl  start
start:  cli
        lgdtl   %cs:(gdtr - 0xf0000)
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $0x08, $protected

        .code32
protected:
        movw    $0x10, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $SLOW_LOOP, %ecx
1:      decl    %ecx
        jnz     1b
        cld
        xorl    %eax, %eax              /* clear the tables */
        movl    $PML4, %edi
        movl    $((IDT + 0x1000 - PML4) / 4), %ecx
        rep stosl
        movl    $(PDPT + 3), PML4
        movl    $(PD_LOW + 3), PDPT
        movl    $(PD_APIC + 3), PDPT + 3 * 8
        movl    $0x83, PD_LOW           /* the first 2 MiB; the second are left out, to fault */
        movl    $0xfee0009b, PD_APIC + 0x1f7 * 8
        movl    %cr4, %eax
        orl     $0x20, %eax             /* PAE */
        movl    %eax, %cr4
        movl    $PML4, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx       /* EFER.LME */
        rdmsr
        orl     $0x100, %eax
        wrmsr
        movl    %cr0, %eax
        orl     $0x80000000, %eax
        movl    %eax, %cr0
        ljmpl   $0x18, $long

        .code64
long:   movl    $STACK, %esp
        movl    $FAST_LOOP, %ecx
1:      decl    %ecx
        jnz     1b
        movl    $14, %edi
        movl    $page_fault, %esi
        call    gate
        movl    $0x20, %edi
        movl    $timer, %esi
        call    gate
        lidt    idtr(%rip)
        movq    $0x55, 0x200000         /* faults; the handler maps it and the write is done again */
        cmpb    $0x55, 0x200000
        jne     fail
        xorl    %eax, %eax
        cpuid
        rdtsc
        movw    $SERIAL, %dx
        movb    $'K', %al
        outb    %al, %dx
        movl    $0xfee00000, %edi       /* local APIC: on, timer one-shot on vector 0x20 */
        movl    $0x1ff, 0xf0(%rdi)
        movl    $0x0b, 0x3e0(%rdi)
        movl    $0x20, 0x320(%rdi)
        movl    $100000, 0x380(%rdi)
        sti
1:      hlt
        jmp     1b

gate:   shll    $4, %edi                /* edi: vector, esi: handler below 4 GiB */
        addl    $IDT, %edi
        movw    %si, (%rdi)
        movw    $0x18, 2(%rdi)
        movw    $0x8e00, 4(%rdi)
        shrl    $16, %esi
        movw    %si, 6(%rdi)
        ret

page_fault:
        movl    $0x200083, PD_LOW + 8
        addq    $8, %rsp                /* the error code */
        iretq

timer:  movb    $0x21, %al
        jmp     leave
fail:   movb    $0x11, %al
leave:  movw    $EXIT_PORT, %dx
        outb    %al, %dx
1:      hlt
        jmp     1b

        .balign 8
gdt:    .quad   0
        .quad   0x00cf9a000000ffff      /* 08: 32-bit code */
        .quad   0x00cf92000000ffff      /* 10: data */
        .quad   0x00af9a000000ffff      /* 18: 64-bit code */
gdtr:   .word   31
        .long   gdt
idtr:   .word   0xfff
        .quad   IDT
