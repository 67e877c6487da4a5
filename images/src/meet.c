// SPDX-License-Identifier: GPL-2.0-only
/*
 * Meet the host, for a snapshot: once to be stopped, and once more right behind,
 * where the guest is caught if it has got away.
 */
#include "meet.h"

int main(void)
{
	meet();
	/* QEMU looks whether it has to stop where a new block of code begins. */
	asm volatile("jmp 1f\n1:");
	meet();
	return 0;
}
