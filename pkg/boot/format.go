package boot

import (
	"fmt"
	"regexp"
	"strconv"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/grubenv"
)

// maxSeq is the largest sequence number, the largest with the nine digits that
// grub.cfg accepts; GRUB compares within 32 bits.
const maxSeq = 999_999_999

// record is one copy's content.
type record struct {
	// seq is the number of the write, 1 to maxSeq; 0 for a block of the old
	// system, which has none, so that any copy of ours counts before it.
	seq   int
	state State
}

// next is the sequence number after seq. After the largest comes 1.
func next(seq int) int {
	if seq >= maxSeq {
		return 1
	}
	return seq + 1
}

// encode makes the block of a record: seq first and end last, so that values of
// two writes do not agree if only a part of the sector arrived.
func (r record) encode() ([]byte, error) {
	seq, other := strconv.Itoa(r.seq), "0"
	if r.state.Other {
		other = "1"
	}
	values := [][2]string{
		{"seq", seq},
		{"ustate", strconv.Itoa(int(r.state.Phase))},
		{"rootfs", string(r.state.Rootfs)},
		{"boot_counter", strconv.Itoa(r.state.Tries)},
		{"rung", strconv.Itoa(int(r.state.Rung))},
		{"other", other},
	}
	if r.state.Given > 0 {
		values = append(values, [2]string{"given", strconv.Itoa(r.state.Given)})
	}
	var b grubenv.Block
	for _, v := range append(values, [2]string{"end", seq}) {
		if err := b.Set(v[0], v[1]); err != nil {
			return nil, err
		}
	}
	if _, err := decode(b); err != nil {
		return nil, err
	}
	return b.Encode()
}

// What the variables may be; grub.cfg has the same patterns.
const (
	isSeq   = `^[1-9][0-9]{0,8}$`
	isState = `^[013]$`
	isSlot  = `^[AB]$`
	isTries = `^[0-9]$`
	isRung  = `^[0-3]$`
	isOther = `^[01]$`
)

// decode accepts exactly the values that grub.cfg accepts, so that both choose
// the same copy. Variables with other names are left out, as there.
//
// Two older formats are read as what they meant. Before there were rungs, rung
// and other were missing, and beside a trial the counter meant nothing: such a
// state has all its tries on the first rung. The system before osctl had no seq
// and end either.
func decode(b grubenv.Block) (record, error) {
	values := map[string]string{}
	for _, name := range b.Names() {
		values[name], _ = b.Get(name)
	}
	numbered := values["seq"] != "" || values["end"] != ""
	rungs := values["rung"] != "" || values["other"] != ""
	for _, v := range [...]struct {
		name, pattern string
		wanted        bool
	}{
		{"seq", isSeq, numbered || rungs},
		{"ustate", isState, true},
		{"rootfs", isSlot, true},
		{"boot_counter", isTries, true},
		{"rung", isRung, rungs},
		{"other", isOther, rungs},
		{"end", isSeq, numbered || rungs},
	} {
		switch {
		case !v.wanted:
		case values[v.name] == "":
			return record{}, fmt.Errorf("%w: %s is missing", ErrValue, v.name)
		case !regexp.MustCompile(v.pattern).MatchString(values[v.name]):
			return record{}, fmt.Errorf("%w: %s=%.20q, want %s", ErrValue, v.name, values[v.name], v.pattern)
		}
	}
	if values["seq"] != values["end"] {
		return record{}, fmt.Errorf("%w: seq=%s, end=%s", ErrTorn, values["seq"], values["end"])
	}
	r := record{state: State{
		Phase: Phase(digit(values["ustate"])), Rootfs: device.Slot(values["rootfs"]), Tries: digit(values["boot_counter"]),
		Given: given(values["given"]),
	}}
	if numbered {
		seq, err := strconv.Atoi(values["seq"])
		if err != nil {
			return record{}, err
		}
		r.seq = seq
	}
	switch {
	case rungs && r.state.Phase == Trial: // which has no rungs
		r.state.Other = values["other"] == "1"
	case rungs:
		r.state.Rung, r.state.Other = Rung(digit(values["rung"])), values["other"] == "1"
	case r.state.Phase != Trial:
		r.state.Tries = FullTries
	}
	return r, nil
}

// digit is the value of a text that was matched to be one digit.
func digit(s string) int { return int(s[0] - '0') }

// given reads what only user space reads: what is no number of ours counts as
// the most, so that it can end a loop and never prolong one.
func given(s string) int {
	switch {
	case s == "":
		return 0
	case len(s) == 1 && '0' <= s[0] && s[0] <= '9':
		return digit(s)
	}
	return MaxGiven
}

// outdated reports whether a block has an older format than encode makes.
func outdated(b grubenv.Block) bool {
	_, rungs := b.Get("rung")
	return !rungs
}
