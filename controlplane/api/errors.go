package api

import (
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// Kind says what sort of refusal an error is. Its numbers are those of overlayd.v1.ErrorInfo.Kind, the first
// seven of which are also those of the kinds that the replicated state has.
type Kind = overlaydv1.ErrorInfo_Kind

// The kinds of errors.
const (
	Invalid     = overlaydv1.ErrorInfo_KIND_INVALID     // a field is missing or malformed
	NotFound    = overlaydv1.ErrorInfo_KIND_NOT_FOUND   // what is named is not there
	Exists      = overlaydv1.ErrorInfo_KIND_EXISTS      // a name, an address or a VNI is taken
	Conflict    = overlaydv1.ErrorInfo_KIND_CONFLICT    // somebody else changed it meanwhile
	Exhausted   = overlaydv1.ErrorInfo_KIND_EXHAUSTED   // no address or VNI is left
	InUse       = overlaydv1.ErrorInfo_KIND_IN_USE      // something still needs it
	Refused     = overlaydv1.ErrorInfo_KIND_REFUSED     // it would harm the cluster
	Unavailable = overlaydv1.ErrorInfo_KIND_UNAVAILABLE // no manager, no quorum or no leader can be reached
	NotMember   = overlaydv1.ErrorInfo_KIND_NOT_MEMBER  // this node is in no cluster
)

// codeOf is the status that goes over the wire with a kind.
func codeOf(kind Kind) connect.Code {
	switch kind {
	case Invalid:
		return connect.CodeInvalidArgument
	case NotFound:
		return connect.CodeNotFound
	case Exists:
		return connect.CodeAlreadyExists
	case Conflict:
		return connect.CodeAborted
	case Exhausted:
		return connect.CodeResourceExhausted
	case InUse, Refused, NotMember:
		return connect.CodeFailedPrecondition
	case Unavailable:
		return connect.CodeUnavailable
	}
	return connect.CodeInternal
}

// Errorf returns an error for the caller of the API. The field is the request's, as JSON users know it, such
// as subnets[0], or "" for none in particular; it goes before the message. The message says what is wrong and
// what to do. Arguments for %w stay reachable to errors.Is on this side of the wire, and only there.
func Errorf(kind Kind, field, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	if field != "" {
		err = fmt.Errorf("%s: %w", field, err)
	}
	ce := connect.NewError(codeOf(kind), err)
	// NewErrorDetail fails for messages that cannot be encoded; this one has two plain fields.
	if detail, derr := connect.NewErrorDetail(&overlaydv1.ErrorInfo{Kind: kind, Field: field}); derr == nil {
		ce.AddDetail(detail)
	}
	return ce
}

// ErrNotMember is the error of a node that is in no cluster.
func ErrNotMember() error {
	return Errorf(NotMember, "", "this node is in no cluster: make one with `overlayctl init`, or enter one with `overlayctl join`")
}

// Info returns the kind and the field of an error that Errorf made, on either side of the wire. For another
// error the kind is unspecified.
func Info(err error) (Kind, string) {
	ce, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return overlaydv1.ErrorInfo_KIND_UNSPECIFIED, ""
	}
	for _, d := range ce.Details() {
		if m, err := d.Value(); err == nil {
			if info, ok := m.(*overlaydv1.ErrorInfo); ok {
				return info.Kind, info.Field
			}
		}
	}
	return overlaydv1.ErrorInfo_KIND_UNSPECIFIED, ""
}
