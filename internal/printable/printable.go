// Package printable makes text of guests, and of everything else that is not trusted, safe to show:
// no control character reaches a terminal, and no line of another looks like one of banger's.
// Everything that shows such text uses it. It imports no other package of banger.
package printable

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Max is how many bytes of one untrusted string are shown.
const Max = 1024

// Escape makes a string printable: it writes unprintable characters as \x1b, and backslashes so
// too, which distinguishes them from a \x1b in the string. It keeps at most Max bytes, whole
// characters.
func Escape(s string) string { return escaped(cut(s), unicode.IsPrint, '\\') }

// Word is Escape for a column that others follow: one word, never empty.
func Word(s string) string {
	if s == "" {
		return "-"
	}
	return strings.ReplaceAll(Escape(s), " ", `\x20`)
}

// Sentence is Escape for a sentence of banger's own with quoted parts: backslashes stay.
func Sentence(s string) string { return Message(cut(s)) }

// Message is Sentence without a bound, for messages of banger's programs.
func Message(s string) string { return escaped(s, unicode.IsPrint, -1) }

// Line is Sentence without a bound and with printable ASCII only: one line of a log.
func Line(s string) string {
	return escaped(s, func(r rune) bool { return r >= ' ' && r < 0x7f }, -1)
}

// Name is Escape without a bound: a path that a person may have to type again.
func Name(s string) string { return escaped(s, unicode.IsPrint, '\\') }

// cut keeps at most Max bytes, whole characters.
func cut(s string) string {
	if len(s) <= Max {
		return s
	}
	n := Max
	for n > Max-utf8.UTFMax && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// escaped escapes characters that are not plain, bytes that are not UTF-8, and special.
func escaped(s string, plain func(rune) bool, special rune) string {
	clean := true
	for i := 0; i < len(s) && clean; i++ {
		clean = s[i] >= ' ' && s[i] < 0x7f && rune(s[i]) != special
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 || r == special || !plain(r) {
			for _, c := range []byte(s[i : i+n]) {
				fmt.Fprintf(&b, `\x%02x`, c)
			}
		} else {
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

// Mask replaces, in place, each byte that is neither printable ASCII, a tab, a newline nor NUL by
// a question mark. It is for a file that is shown by offset, where nothing may change its length,
// and whose trimmed head reads as NULs.
func Mask(b []byte) {
	for i, c := range b {
		if (c < ' ' || c > '~') && c != '\n' && c != '\t' && c != 0 {
			b[i] = '?'
		}
	}
}

// JSON escapes the control characters that encoding/json leaves in strings: DEL and those of
// Latin 1, which terminals obey. The input is JSON, in which they appear in strings only.
func JSON(b []byte) []byte {
	if !strings.ContainsFunc(string(b), control) {
		return b
	}
	var out []byte
	for _, r := range string(b) {
		if control(r) {
			out = fmt.Appendf(out, `\u%04x`, r)
		} else {
			out = utf8.AppendRune(out, r)
		}
	}
	return out
}

// control reports control characters that encoding/json does not escape, and those that reverse the
// direction of text.
func control(r rune) bool {
	return r >= 0x7f && r <= 0x9f || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069
}
