#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# wrapper [FILE...] --|--escaped PROGRAM [ARG...]
#
# Run a program; what it wrote to the files is sent as well.
# Init takes words without blanks: others come with `\040` for them, as printf has it.
files=
while [ "${1#--}" = "$1" ]; do
	files="$files $1"
	shift
done
how=$1
shift
if [ "$how" = --escaped ]; then
	for word; do
		set -- "$@" "$(printf '%b' "$word")"
		shift
	done
fi
"$@"
status=$?
for file in $files; do
	name=${file#/}
	# We may read more than the program: its links lead nowhere.
	[ ! -f "$file" ] || [ -L "$file" ] || cp "$file" "/run/result/file.$(echo "$name" | tr / _)"
done
exit $status
