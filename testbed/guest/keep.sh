#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# keep FILE... -- PROGRAM [ARG...]: run a program; what it wrote to the files is sent as if it were in /run/result.
files=
while [ "$1" != -- ]; do
	files="$files $1"
	shift
done
shift
"$@"
status=$?
for file in $files; do
	name=${file#/}
	[ ! -f "$file" ] || cp "$file" "/run/result/file.$(echo "$name" | tr / _)"
done
exit $status
