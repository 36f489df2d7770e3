package state

import (
	"fmt"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// RulesVersion is the version of the rules of application that this code knows. See the package comment.
const RulesVersion = 1

// VersionError says that something was written by the rules of a newer version than this node knows.
type VersionError struct {
	What  string // "the command", "the snapshot"
	Needs uint32
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s needs version %d of the rules of the cluster's state, and this node knows version %d: upgrade overlayd on this node",
		e.What, e.Needs, RulesVersion)
}

// refusal is why a command, or a record of a snapshot or batch, cannot become part of the state. It is deliberately no
// error, so that a nil one cannot become an error that is not nil.
type refusal struct {
	kind    statev1.Error_Kind
	field   string // of the message that was looked at, "" = none in particular
	message string
}

func refuse(kind statev1.Error_Kind, field, format string, args ...any) *refusal {
	return &refusal{kind: kind, field: field, message: fmt.Sprintf(format, args...)}
}

func invalid(field, format string, args ...any) *refusal {
	return refuse(statev1.Error_KIND_INVALID, field, format, args...)
}

// under puts the field under the name of the message that holds it.
func (r *refusal) under(outer string) *refusal {
	if r == nil {
		return nil
	}
	if r.field == "" {
		return &refusal{r.kind, outer, r.message}
	}
	return &refusal{r.kind, outer + "." + r.field, r.message}
}

func (r *refusal) toWire() *statev1.Error {
	return &statev1.Error{Kind: r.kind, Field: r.field, Message: r.message}
}

// err is the refusal as an error, for records that no command brought.
func (r *refusal) err() error {
	if r == nil {
		return nil
	}
	if r.field == "" {
		return fmt.Errorf("%s", r.message)
	}
	return fmt.Errorf("%s: %s", r.field, r.message)
}

// maxShown is how many bytes of a value a message repeats.
const maxShown = 48

// show repeats a value of somebody else's in a message: quoted, and not all of a long one.
func show(s string) string {
	if len(s) > maxShown {
		return fmt.Sprintf("%+q... (%d bytes)", s[:maxShown], len(s))
	}
	return fmt.Sprintf("%+q", s)
}
