// SPDX-License-Identifier: GPL-2.0-only
/* toucher PAGES SECONDS: touch a block of memory again and again. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	size_t pages = strtoul(argv[1], NULL, 10), touched = 0;
	char *block = calloc(pages, 4096);
	time_t end = time(NULL) + atoi(argv[2]);

	while (block && time(NULL) < end)
		for (size_t i = 0; i < pages; i++, touched++)
			block[i * 4096]++;
	printf("%zu touched\n", touched);
	return !block;
}
