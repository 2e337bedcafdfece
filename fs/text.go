package fs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

const maxCell = 1024 // bytes of one cell of untrusted text

// escape makes untrusted text printable: what is no printable character becomes \x1b style, and so that this is told
// from what was there, a backslash does. At most maxCell bytes of s, whole characters, are looked at.
func escape(s string) string { return printable(s, '\\') }

// sentence is escape for a sentence of banger's own, in which what others wrote is quoted already: a backslash stays.
func sentence(s string) string { return printable(s, -1) }

// printable escapes what is no printable character, and the character special.
func printable(s string, special rune) string {
	if len(s) > maxCell {
		n := maxCell
		for n > maxCell-utf8.UTFMax && !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n]
	}
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
		if r == utf8.RuneError && n == 1 || r == special || !unicode.IsPrint(r) {
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

// cell is escape for a column that is not the last: one word, never empty.
func cell(s string) string {
	if s == "" {
		return "-"
	}
	return strings.ReplaceAll(escape(s), " ", `\x20`)
}

// table pads every column but the last with spaces; no row ends in them.
func table(rows [][]string) []byte {
	var widths []int
	for _, row := range rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	var b bytes.Buffer
	for _, row := range rows {
		pad := 0
		for i, c := range row {
			if c == "" {
				pad += widths[i] + 2
				continue
			}
			for range pad {
				b.WriteByte(' ')
			}
			b.WriteString(c)
			pad = widths[i] - utf8.RuneCountInString(c) + 2
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// pair is one line of a flat keyed file; value is a string, a number or a bool, for the JSON twin.
type pair struct {
	key   string
	value any
	text  string // what the text file shows, if not fmt.Sprint(value)
}

func flat(pairs []pair) []byte {
	var b bytes.Buffer
	for _, p := range pairs {
		text := p.text
		if text == "" {
			text = fmt.Sprint(p.value)
		}
		b.WriteString(strings.TrimRight(p.key+" "+text, " "))
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// object is flat's JSON twin, in the same order.
func object(pairs []pair) ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, p := range pairs {
		if i > 0 {
			b.WriteByte(',')
		}
		value, err := json.Marshal(p.value)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%q:%s", p.key, value)
	}
	b.WriteString("}\n")
	return b.Bytes(), nil
}

func jsonLine(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	return append(b, '\n'), err
}

// line is a file of a single value; nothing is an empty file.
func line(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	return []byte(s + "\n"), nil
}
