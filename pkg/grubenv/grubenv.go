// Package grubenv turns GRUB's environment block into variables and back.
//
// The block is the file that GRUB's load_env and save_env and the program
// grub-editenv read and write: a signature line, lines name=value in which a
// backslash stands before a backslash or a newline of the value, and '#' up to
// the end. The source of the format is the GRUB 2.06 manual, "The GRUB
// environment block"; what the manual leaves open (several lines of one name,
// a line without '=', a NUL byte) is read as GRUB 2.06 reads it, because osctl
// and GRUB have to see the same values in a damaged file. A test compares the
// two on such files.
//
// The package knows nothing of what the variables mean, and it opens no file.
//
// It promises that Encode is deterministic and makes a block whose variables
// all lie in the first sector: GRUB writes the block as two sectors, so a power
// cut between them can then not mix old values with new ones.
package grubenv

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Size is the length in bytes of a block that Encode makes, the only size that
// grub-editenv creates.
const Size = 1024

// Sector is the length in bytes of the smallest unit that a disk writes: the
// variables of an encoded block end before it.
const Sector = 512

// signature opens every block; GRUB refuses a file that begins with anything else.
const signature = "# GRUB Environment Block\n"

// Errors of Parse, Set and Encode.
var (
	// ErrSignature is returned for bytes that are no environment block: an empty
	// file, other content, or nothing after the signature line.
	ErrSignature = errors.New("no GRUB environment block: the signature line is missing")
	// ErrName is returned for a name that is no variable name in a GRUB script.
	ErrName = errors.New("not a name of a GRUB variable: want letters, digits and _")
	// ErrValue is returned for a value that GRUB would cut short.
	ErrValue = errors.New("the value holds a NUL byte, where GRUB would end it")
	// ErrTooLarge is returned when the variables do not fit into the first sector.
	ErrTooLarge = errors.New("the variables do not fit into the first 512 bytes of the block")
)

// Block holds the variables of an environment block in their order. The zero
// value is a block without variables.
type Block struct {
	vars []variable
}

type variable struct{ name, value string }

// Parse reads a block of any size, as GRUB does. It fails with ErrSignature
// only; lines that are no variables are left out, and of several lines with one
// name the last counts.
func Parse(data []byte) (Block, error) {
	rest, ok := bytes.CutPrefix(data, []byte(signature))
	if !ok || len(rest) == 0 { // GRUB wants at least one byte more
		return Block{}, ErrSignature
	}
	var b Block
	for len(rest) > 0 {
		if rest[0] != '#' {
			v, ok := cutVariable(rest)
			if !ok {
				break
			}
			b.put(v.name, v.value)
			// The name may hold newlines and backslashes of lines without '=';
			// the next line is looked for behind it.
			rest = rest[bytes.IndexByte(rest, '=')+1:]
		}
		rest = nextLine(rest)
	}
	return b, nil
}

// cutVariable reads the variable that begins at the first byte of text; false
// when there is none up to the end of the block.
func cutVariable(text []byte) (variable, bool) {
	name, rest, ok := bytes.Cut(text, []byte("="))
	if !ok {
		return variable{}, false
	}
	var value []byte
	for i := 0; i < len(rest); i++ {
		switch rest[i] {
		case '\n':
			return variable{untilNUL(name), untilNUL(value)}, true
		case '\\':
			if i++; i == len(rest) {
				return variable{}, false
			}
		}
		value = append(value, rest[i])
	}
	return variable{}, false
}

// nextLine returns what follows the first newline that no backslash escapes.
func nextLine(text []byte) []byte {
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\n':
			return text[i+1:]
		case '\\':
			i++
		}
	}
	return nil
}

// untilNUL cuts text where a C string ends.
func untilNUL(text []byte) string {
	before, _, _ := bytes.Cut(text, []byte{0})
	return string(before)
}

// Get returns the value of a variable, and false when the block does not have it.
func (b Block) Get(name string) (string, bool) {
	if i := b.index(name); i >= 0 {
		return b.vars[i].value, true
	}
	return "", false
}

// Names returns the names of the variables in the order of the block.
func (b Block) Names() []string {
	names := make([]string, len(b.vars))
	for i, v := range b.vars {
		names[i] = v.name
	}
	return names
}

// Set gives a variable a value. A new variable goes to the end of the block, a
// known one keeps its place. It fails with ErrName or ErrValue.
func (b *Block) Set(name, value string) error {
	if !isName(name) {
		return fmt.Errorf("setting %q: %w", name, ErrName)
	}
	if strings.ContainsRune(value, 0) {
		return fmt.Errorf("setting %s: %w", name, ErrValue)
	}
	b.put(name, value)
	return nil
}

// put works on a copy, so that blocks that were assigned share nothing.
func (b *Block) put(name, value string) {
	b.vars = slices.Clone(b.vars)
	if i := b.index(name); i >= 0 {
		b.vars[i].value = value
		return
	}
	b.vars = append(b.vars, variable{name, value})
}

func (b Block) index(name string) int {
	return slices.IndexFunc(b.vars, func(v variable) bool { return v.name == name })
}

func isName(name string) bool {
	if name == "" {
		return false
	}
	for _, c := range []byte(name) {
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// Encode returns the block as exactly Size bytes, the same bytes for the same
// variables in the same order. It fails with ErrTooLarge, and with ErrName for
// a name that came out of a damaged block.
func (b Block) Encode() ([]byte, error) {
	escape := strings.NewReplacer(`\`, `\\`, "\n", "\\\n")
	out := make([]byte, 0, Size)
	out = append(out, signature...)
	for _, v := range b.vars {
		if !isName(v.name) {
			return nil, fmt.Errorf("encoding %q: %w", v.name, ErrName)
		}
		out = append(out, v.name+"="+escape.Replace(v.value)+"\n"...)
	}
	if len(out) > Sector {
		return nil, fmt.Errorf("encoding %d bytes of variables: %w", len(out), ErrTooLarge)
	}
	return append(out, bytes.Repeat([]byte("#"), Size-len(out))...), nil
}
